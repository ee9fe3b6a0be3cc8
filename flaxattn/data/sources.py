"""Which source a config asks for."""

import os
from collections.abc import Mapping
from typing import Any

from flaxattn.data import scenes
from flaxattn.data.coco import CocoSource
from flaxattn.data.folder_source import FolderSource
from flaxattn.data.records import ANNOTATIONS, Source
from flaxattn.data.tfds_source import TfdsSource
from flaxattn.data.voc import VocSource
from flaxattn.errors import InputError, unknown
from flaxattn.layers.fields import require_fields, require_type


def open_source(config: Mapping[str, Any], split: str, *, annotation: str = "class") -> Source:
    """The source that a config asks for.

    Args:
        config: `source`, `name` and `data_dir`. By `source`:
            "tfds": `name` is a TFDS name such as "digits", "imagenet2012" or "cifar10:3.0.2", and
                `data_dir` where TFDS keeps its sets, "" for TFDS's default.
            "folder": `data_dir` is the root of the folders of splits.
            "voc": `data_dir` is a VOC20xx folder or the VOCdevkit around several. With the `name`
                "scenes" it is where `flaxattn.data.scenes` keeps its pictures, "" for TFDS's
                default.
            "coco": `data_dir` holds annotations/ and a folder of images for each split.
        split: a TFDS split, slices included ("train[:90%]"); the name of a folder below the root;
            a list of VOC's ImageSets such as "train", or of several years,
            "VOC2007/trainval+VOC2012/trainval"; COCO's such as "train2017".
        annotation: a key of ANNOTATIONS. A folder has "class" alone, COCO all but "class".

    The EMBEDDED sets and the scenes are prepared on the spot if need be; all others must lie on
    this machine.

    Raises InputError for anything that is not there, saying what is or how to get it.
    """
    require_fields(config, {"source": str, "data_dir": str})
    require_type("split", split, str)
    kind = config["source"]
    if kind not in _SOURCES:
        raise unknown("source", kind, _SOURCES)
    if annotation not in ANNOTATIONS:
        raise unknown("annotation", annotation, ANNOTATIONS)
    return _SOURCES[kind](config, split, annotation)


def require_same_classes(train: Source, evaluation: Source) -> None:
    """InputError unless both sources have the same classes, so that labels mean the same."""
    if train.class_names == evaluation.class_names:
        return
    missing = sorted(set(train.class_names) - set(evaluation.class_names))
    extra = sorted(set(evaluation.class_names) - set(train.class_names))
    differences = [
        f"{len(names)} only in {where} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for names, where in ((missing, "training"), (extra, "evaluation"))
        if names
    ]
    raise InputError(
        f"the classes of the training and evaluation data differ: "
        f"{' and '.join(differences) or 'the same names in another order'}; "
        f"give both splits the same classes."
    )


def _open_tfds(config: Mapping[str, Any], split: str, annotation: str) -> Source:
    require_fields(config, {"name": str})
    return TfdsSource(config["name"], split, data_dir=_data_dir(config), annotation=annotation)


def _open_folder(config: Mapping[str, Any], split: str, annotation: str) -> Source:
    if annotation != "class":
        raise InputError(
            f"a folder per class is no data for {ANNOTATIONS[annotation]}: use a TFDS set "
            f"(data.source='tfds') or a VOC folder (data.source='voc')."
        )
    return FolderSource(_data_dir(config), split)


def _open_voc(config: Mapping[str, Any], split: str, annotation: str) -> Source:
    require_fields(config, {"name": str})
    root = _data_dir(config)
    if config["name"] == "scenes":
        root = str(scenes.prepare(root))
    return VocSource(root, split, annotation=annotation)


def _open_coco(config: Mapping[str, Any], split: str, annotation: str) -> Source:
    return CocoSource(_data_dir(config), split, annotation=annotation)


def _data_dir(config: Mapping[str, Any]) -> str:
    return os.path.expanduser(config["data_dir"])


_SOURCES = {"tfds": _open_tfds, "folder": _open_folder, "voc": _open_voc, "coco": _open_coco}

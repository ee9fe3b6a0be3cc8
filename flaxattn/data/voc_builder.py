"""A copy of a VOC folder that TFDS reads: a few large files instead of many small ones.

VocFolder(root="VOCdevkit", splits={"train": "VOC2012/train", "val": "VOC2012/val"},
          data_dir="sets", config="objects").download_and_prepare(file_format="array_record")

source = open_source({"source": "tfds", "name": "voc_folder/objects", "data_dir": "sets"},
                     "train", annotation="objects")
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flaxattn.data.records import Objects
from flaxattn.data.voc import VocSource
from flaxattn.images.decoding import image_size


class VocFolder(tfds.core.GeneratorBasedBuilder):
    """A set in VOC's layout (`VocSource`), in the order of its lists and with its files' bytes.

    Features, by config:
        objects: image; objects, a Sequence of bbox (as a part of the image's height and width),
            label and is_difficult; labels and labels_no_difficult, which classes there are. As in
            TFDS's own `voc`.
        masks: image; mask, a LabeledImage.

    Args:
        root: the folder.
        splits: of each TFDS split, VOC's list, as `VocSource` takes it.
        options: TFDS's own: data_dir, and config.
    """

    name = "voc_folder"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=annotation) for annotation in ("objects", "masks")
    ]
    # There is no list of checksums beside this file, and TFDS's search for one needs the package
    # importlib_resources, which it forgets to install.
    code_path = None

    def __init__(
        self, *, root: str | os.PathLike, splits: Mapping[str, str], **options: Any
    ) -> None:
        annotation = options.get("config") or "objects"
        self._sources = {
            name: VocSource(root, split, annotation=annotation) for name, split in splits.items()
        }
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        names = list(next(iter(self._sources.values())).class_names)
        classes = tfds.features.ClassLabel(names=names)
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": classes,
            "is_difficult": np.bool_,
        }
        features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")}
        if self.builder_config.name == "masks":
            features["mask"] = tfds.features.LabeledImage(labels=names, encoding_format="png")
        else:
            features |= {
                "objects": tfds.features.Sequence(objects),
                "labels": tfds.features.Sequence(classes),
                "labels_no_difficult": tfds.features.Sequence(classes),
            }
        return tfds.core.DatasetInfo(
            builder=self,
            description="A folder in the layout of Pascal VOC.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {name: self._generate_examples(source) for name, source in self._sources.items()}

    def _generate_examples(self, source: VocSource) -> Iterator[tuple[int, dict]]:
        for index in range(len(source)):
            record = source[index]
            # By its path, so that the file's bytes are kept.
            example: dict[str, Any] = {"image": record["name"]}
            if self.builder_config.name == "masks":
                example["mask"] = source.mask_file(index)
            else:
                example |= _encoded(record["objects"], *image_size(record["image"]))
            yield index, example


def _encoded(objects: Objects, height: int, width: int) -> dict[str, Any]:
    # As TFDS's own: what is divided by the size are VOC's numbers, whose first pixel is 1.
    numbers = np.add(objects["boxes"], [1, 1, 0, 0], dtype=np.float64)
    relative = (numbers / [width, height, width, height])[:, [1, 0, 3, 2]]
    labels, difficult = objects["labels"].tolist(), objects["difficult"]
    return {
        "objects": [
            {"bbox": tfds.features.BBox(*box), "label": label, "is_difficult": flag}
            for box, label, flag in zip(relative.tolist(), labels, difficult.tolist(), strict=True)
        ],
        "labels": sorted(set(labels)),
        "labels_no_difficult": np.unique(objects["labels"][~difficult]).tolist(),
    }

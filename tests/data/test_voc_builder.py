import pickle

import numpy as np
import pytest

from flaxattn.data import open_source
from flaxattn.data.voc import VocSource
from flaxattn.data.voc_builder import VocFolder
from flaxattn.errors import InputError


@pytest.fixture(scope="module")
def data_dir(scenes_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for annotation in ("objects", "masks"):
        builder = VocFolder(
            root=scenes_root.parent,
            splits={"train": "VOC2012/train", "validation": "val"},
            data_dir=folder,
            config=annotation,
        )
        builder.download_and_prepare(file_format="array_record")
    return str(folder)


def copied(data_dir, annotation, split):
    name = "voc_folder/masks" if annotation == "masks" else "voc_folder/objects"
    config = {"source": "tfds", "name": name, "data_dir": data_dir}
    return open_source(config, split, annotation=annotation)


@pytest.mark.parametrize("annotation", ["objects", "classes", "masks"])
@pytest.mark.parametrize(("split", "listed"), [("train", "train"), ("validation", "val")])
def test_a_folder_and_its_copy_give_equal_records(scenes_root, data_dir, annotation, split, listed):
    folder = VocSource(scenes_root, listed, annotation=annotation)
    copy = copied(data_dir, annotation, split)
    assert copy.class_names == folder.class_names
    assert len(copy) == len(folder)
    for index in range(len(copy)):
        expected = folder[index] | {"name": f"voc_folder/{split}[{index}]"}
        np.testing.assert_equal(copy[index], expected)


def test_dtypes_are_those_of_the_folder(scenes_root, data_dir):
    objects = copied(data_dir, "objects", "train")[0]["objects"]
    dtypes = {name: np.asarray(values).dtype for name, values in objects.items()}
    expected = VocSource(scenes_root, "train")[0]["objects"]
    assert dtypes == {name: np.asarray(values).dtype for name, values in expected.items()}


@pytest.mark.parametrize("annotation", ["objects", "masks"])
def test_a_copy_survives_pickling(data_dir, annotation):
    source = copied(data_dir, annotation, "train")
    np.testing.assert_equal(pickle.loads(pickle.dumps(source))[3], source[3])


@pytest.mark.parametrize("annotation", ["class", "masks"])
def test_a_copy_without_the_annotation_is_refused(data_dir, annotation):
    config = {"source": "tfds", "name": "voc_folder/objects", "data_dir": data_dir}
    with pytest.raises(InputError, match=f"which image has which {annotation}"):
        open_source(config, "train", annotation=annotation)

import io
import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from flaxattn.data import digits, open_source, require_same_classes
from flaxattn.errors import InputError


def encoded(colour, *, size=(6, 5), form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format=form)
    return file.getvalue()


def tfds_config(name, data_dir):
    return {"source": "tfds", "name": name, "data_dir": str(data_dir)}


def folder_config(root):
    return {"source": "folder", "name": "", "data_dir": str(root)}


def one_sentence(error):
    message = str(error.value)
    assert "\n" not in message
    return message


# Prepared TFDS sets


def test_digits_are_prepared_on_the_spot(tmp_path):
    config = tfds_config("digits", tmp_path)
    train, test = open_source(config, "train"), open_source(config, "test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.class_names == tuple("0123456789")
    assert train.num_classes == 10
    record = train[12]
    assert record["name"] == "digits/train[12]"
    assert type(record["label"]) is int
    assert record["image"].startswith(b"\x89PNG")


def test_images_and_labels_belong_together(data_dir):
    reference = digits.prepare(data_dir).as_data_source("test")
    source = open_source(tfds_config("digits", data_dir), "test")
    for index in (0, 17, 358):
        image = np.asarray(Image.open(io.BytesIO(source[index]["image"])))
        np.testing.assert_array_equal(image, reference[index]["image"][..., 0])
        assert source[index]["label"] == reference[index]["label"]


def test_a_config_dict_serves_as_well(data_dir):
    config = ConfigDict(tfds_config("digits", data_dir))
    assert len(open_source(config, "train[:10]")) == 10


def test_slices_and_sums_of_splits(data_dir):
    config = tfds_config("digits", data_dir)
    assert len(open_source(config, "train+test")) == 1797
    assert len(open_source(config, "train[90%:]")) == 144
    assert len(open_source(config, "all")) == 1797


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_tfds_source_survives_pickling(data_dir, monkeypatch, in_memory):
    if not in_memory:
        monkeypatch.setattr("flaxattn.data.tfds_source.HELD_IN_MEMORY", 0)
    source = open_source(tfds_config("digits", data_dir), "train[:20]")
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000, "records or TFDS objects travel along"
    copied = pickle.loads(pickled)
    assert [copied[i] for i in range(20)] == [source[i] for i in range(20)]


class Rooms(tfds.core.GeneratorBasedBuilder):
    """Keys of its own, an unlabelled test split, or several images, by config."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name)
        for name in ("plain", "named", "stereo", "nested", "several", "furnished")
    ]
    code_path = None

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3))
        label = tfds.features.ClassLabel(names=["hall", "attic"])
        keys = {
            "plain": {"photo": image, "kind": label, "note": tfds.features.Text()},
            "named": {"photo": image, "depth": image, "kind": label},
            "stereo": {"left": image, "right": image, "kind": label},
            "nested": {"photo": image, "objects": {"kind": label}},
            "several": {"photo": image, "kinds": tfds.features.Sequence(label)},
            "furnished": {
                "photo": image,
                "kind": label,
                "furniture": tfds.features.Sequence(
                    {"bbox": tfds.features.BBoxFeature(), "label": label, "is_crowd": np.bool_}
                ),
            },
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(keys[self.builder_config.name]),
            supervised_keys=("photo", "kind")
            if self.builder_config.name in ("named", "furnished")
            else None,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(1), "test": self._generate_examples(-1)}

    def _generate_examples(self, label):
        values = {"photo": (250, 0, 0), "left": (1, 1, 1), "right": (2, 2, 2), "depth": (3, 3, 3)}
        for key in range(3):
            example = {}
            for name in self.info.features:
                if name in values:
                    example[name] = io.BytesIO(encoded(values[name]))
            example |= {"kind": label, "note": "x", "objects": {"kind": label}}
            example["kinds"] = [label] * key
            box = tfds.features.BBox(ymin=0.2, xmin=1 / 3, ymax=1.0, xmax=0.5)
            flat = tfds.features.BBox(ymin=0.2, xmin=0.5, ymax=0.2, xmax=0.5)
            example["furniture"] = [
                {"bbox": box, "label": label, "is_crowd": True} for box in [flat, *[box] * key]
            ]
            yield key, {name: example[name] for name in self.info.features}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    for config in Rooms.BUILDER_CONFIGS:
        Rooms(data_dir=folder, config=config.name).download_and_prepare(file_format="array_record")
    return folder


@pytest.mark.parametrize("name", ["rooms/plain", "rooms/named", "rooms/plain:1.0.0"])
def test_the_keys_are_found_from_the_features(rooms, name):
    source = open_source(tfds_config(name, rooms), "train")
    assert source.class_names == ("hall", "attic")
    assert source[2] == {"image": encoded((250, 0, 0)), "label": 1, "name": "rooms/train[2]"}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("rooms/stereo", "kind: ClassLabel, left: Image, right: Image"),
        ("rooms/nested", "objects: FeaturesDict, photo: Image"),
        ("rooms/several", "kinds: Sequence, photo: Image"),
    ],
)
def test_a_set_that_is_not_for_classification_is_refused(rooms, name, kinds):
    with pytest.raises(InputError, match=kinds) as error:
        open_source(tfds_config(name, rooms), "train")
    assert "choose a set for image classification" in one_sentence(error)


def test_a_record_without_a_label_is_refused(rooms):
    source = open_source(tfds_config("rooms/plain", rooms), "test")
    with pytest.raises(InputError, match=r"rooms/test\[1\] has no label"):
        source[1]


def test_an_image_may_have_several_classes_or_none(rooms):
    config = tfds_config("rooms/several", rooms)
    source = open_source(config, "train", annotation="classes")
    assert source.class_names == ("hall", "attic")
    labels = [source[index]["label"] for index in range(3)]
    assert sorted(label.tolist() for label in labels) == [[0, 0], [0, 1], [0, 1]]
    assert {label.dtype for label in labels} == {np.dtype(np.uint8)}
    assert pickle.loads(pickle.dumps(source))[1]["label"].tolist() == labels[1].tolist()
    unlabelled = open_source(config, "test", annotation="classes")
    with pytest.raises(InputError, match="has no label"):
        [unlabelled[index] for index in range(3)]


def test_boxes_are_relative_and_crowds_are_difficult(rooms, caplog):
    """Only sets that have difficult objects, as VOC has, count pixels from 1."""
    config = tfds_config("rooms/furnished", rooms)
    source = open_source(config, "train", annotation="objects")
    assert source.class_names == ("hall", "attic")
    with caplog.at_level(logging.WARNING, "flaxattn"):
        records = [source[index]["objects"] for index in range(3)]
    left_out = "rooms/train[0] has an object without area: all such are left out"
    assert caplog.messages == [left_out]
    assert [objects["image_id"] for objects in records] == [0, 1, 2]
    assert sorted(len(objects["boxes"]) for objects in records) == [0, 1, 2]
    for objects in records:
        count = len(objects["boxes"])
        assert objects["boxes"].tolist() == [[2, 1, 3, 5]] * count
        assert objects["labels"].tolist() == [1] * count
        assert objects["difficult"].tolist() == [True] * count
        assert [objects[key].dtype for key in ("boxes", "labels", "difficult")] == [
            np.dtype(kind) for kind in (np.float32, np.int32, bool)
        ]
    assert open_source(config, "train")[0]["label"] == 1
    unlabelled = open_source(config, "test", annotation="objects")
    with pytest.raises(InputError, match="has no label"):
        [unlabelled[index] for index in range(3)]


def test_a_set_of_one_class_an_image_is_not_multi_label(data_dir):
    with pytest.raises(InputError, match="image: Image, label: ClassLabel") as error:
        open_source(tfds_config("digits", data_dir), "train", annotation="classes")
    assert "choose a set for multi-label classification" in one_sentence(error)


def test_a_set_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(InputError, match="not prepared") as error:
        open_source(tfds_config("imagenet2012", tmp_path), "train")
    message = one_sentence(error)
    assert f"tfds build imagenet2012 --file_format=array_record --data_dir={tmp_path}`" in message
    assert "did you mean" not in message


def test_a_misspelt_set_gets_the_nearest_names(tmp_path):
    with pytest.raises(InputError, match="TFDS has none of this name, did you mean") as error:
        open_source(tfds_config("imagnet2012", tmp_path), "train")
    assert "imagenet2012" in one_sentence(error)


def test_a_name_like_no_other_gets_no_guess(tmp_path):
    with pytest.raises(InputError, match=r"TFDS has none of this name$"):
        open_source(tfds_config("qqqqqqqqqqqq", tmp_path), "train")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "a/b/c"}, "name='a/b/c' cannot be a TFDS set's: use such as 'cifar10'"),
        ({"name": 5}, "name=5 must be a string"),
        ({"data_dir": None}, "data_dir=None must be a string"),
        ({"data_dir": "\0", "name": "digits"}, "digits cannot be prepared in data_dir='.x00'"),
        ({"source": 3}, "source=3 must be a string"),
    ],
)
def test_a_config_that_names_no_set(tmp_path, change, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        open_source(tfds_config("cifar10", tmp_path) | change, "train")
    one_sentence(error)


@pytest.mark.parametrize("config", [{}, {"source": "tfds"}, 5])
def test_what_is_no_config(config):
    with pytest.raises(InputError, match="must be a"):
        open_source(config, "train")


def test_a_set_prepared_in_another_format_is_refused(tmp_path, data_dir):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    (info,) = tmp_path.glob("digits/*/dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match="prepared as tfrecord, and only array_record") as error:
        open_source(tfds_config("digits", tmp_path), "train")
    assert one_sentence(error).endswith(f"delete {info.parent}.")


@pytest.mark.parametrize("split", ["tset", "train+tset", "tset[:5]"])
def test_an_unknown_split_gets_the_known_ones(data_dir, split):
    with pytest.raises(InputError, match=r"did you mean test\? Known: test, train\.") as error:
        open_source(tfds_config("digits", data_dir), split)
    one_sentence(error)


@pytest.mark.parametrize("split", ["train[:300%]", "train[a:b]", "train[5:5]"])
def test_a_slice_that_selects_nothing_is_refused(data_dir, split):
    with pytest.raises(InputError, match="slice such as") as error:
        open_source(tfds_config("digits", data_dir), split)
    assert split in one_sentence(error)


def test_an_unknown_source_gets_the_known_ones():
    with pytest.raises(InputError, match="unknown source 'folders': did you mean folder"):
        open_source({"source": "folders", "name": "", "data_dir": ""}, "train")


# Folders


@pytest.fixture
def root(tmp_path):
    """train and val of two classes, in three formats of names, with things to be passed over."""
    files = {
        "train/dog/b.png": encoded((1, 2, 3)),
        "train/dog/A.JPG": encoded((4, 5, 6), form="JPEG"),
        "train/cat/c.jpeg": encoded((7, 8, 9), form="JPEG", size=(3, 9)),
        "train/cat/notes.txt": b"",
        "train/cat/.hidden.png": b"",
        "train/.cache/x.png": b"",
        "val/dog/d.png": encoded((1, 1, 1)),
        "val/cat/e.png": encoded((2, 2, 2)),
        "README.md": b"",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_folder_per_class(root):
    source = open_source(folder_config(root), "train")
    assert source.class_names == ("cat", "dog")
    assert source.num_classes == 2
    names = ["cat/c.jpeg", "dog/A.JPG", "dog/b.png"]
    assert [source[i]["name"] for i in range(3)] == [f"{root}/train/{name}" for name in names]
    assert [source[i]["label"] for i in range(3)] == [0, 1, 1]
    assert source[2]["image"] == (root / "train/dog/b.png").read_bytes()
    assert len(source) == 3
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_folders_have_one_class_an_image(root):
    with pytest.raises(InputError, match="no data for multi-label classification: use a TFDS set"):
        open_source(folder_config(root), "train", annotation="classes")


def test_what_is_named_as_an_image_and_is_no_file_is_passed_over(root):
    def names():
        source = open_source(folder_config(root), "train")
        return [source[i]["name"] for i in range(len(source))]

    before = names()
    (root / "train/dog/folder.png").mkdir()
    (root / "train/dog/nothing.png").symlink_to(root / "nowhere.png")
    (root / "train/dog/z.png").symlink_to(root / "val/dog/d.png")
    assert names() == [*before, f"{root}/train/dog/z.png"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(PermissionError(13, "Permission denied"), "Permission denied"), (OSError("odd"), "odd")],
)
def test_a_file_that_cannot_be_read_is_a_sentence(root, monkeypatch, error, reason):
    source = open_source(folder_config(root), "train")

    def refuse(_):
        raise error

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=rf"cat/c\.jpeg cannot be read \({reason}\): make"):
        source[0]


def test_the_home_folder_may_be_written_as_a_tilde(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(open_source(folder_config(Path("~", root.name)), "val")) == 2


def test_the_same_classes_pass(root):
    config = folder_config(root)
    require_same_classes(open_source(config, "train"), open_source(config, "val"))


def test_other_classes_are_named(root):
    (root / "val/dog").rename(root / "val/wolf")
    config = folder_config(root)
    with pytest.raises(InputError, match="differ") as error:
        require_same_classes(open_source(config, "train"), open_source(config, "val"))
    message = one_sentence(error)
    assert "1 only in training (dog) and 1 only in evaluation (wolf)" in message


@pytest.mark.parametrize("root", ["", "/nowhere/at/all"])
def test_a_missing_root_is_a_sentence(root):
    with pytest.raises(InputError, match="there is no folder") as error:
        open_source(folder_config(root), "train")
    assert "root/train/<class>" in one_sentence(error)


def test_an_empty_root_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no folders: lay it out as root/train/<class>"):
        open_source(folder_config(tmp_path), "train")


def test_a_missing_folder_of_a_split_gets_the_present_ones(root):
    with pytest.raises(InputError, match=r"unknown split of .*: 'test': .* Known: train, val\."):
        open_source(folder_config(root), "test")


def test_a_split_without_class_folders_is_a_sentence(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="has no class folders: lay it out as"):
        open_source(folder_config(tmp_path), "train")


def test_a_class_without_images_is_named(root):
    (root / "train/empty").mkdir()
    with pytest.raises(InputError, match=r"train/empty' holds no image: put \.jpg"):
        open_source(folder_config(root), "train")

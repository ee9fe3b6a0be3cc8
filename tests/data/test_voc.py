import io
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxattn.data import open_source, require_same_classes
from flaxattn.data.voc import CLASSES, VocSource
from flaxattn.errors import InputError

# As the devkit writes them, with a part of a person and its own box.
DOG_AND_PERSON = """<annotation>
	<folder>VOC2012</folder>
	<filename>2008_000008.jpg</filename>
	<size>
		<width>50</width>
		<height>40</height>
		<depth>3</depth>
	</size>
	<object>
		<name>dog</name>
		<pose>Left</pose>
		<truncated>1</truncated>
		<occluded>0</occluded>
		<bndbox>
			<xmin>1</xmin>
			<ymin>2</ymin>
			<xmax>50</xmax>
			<ymax>40</ymax>
		</bndbox>
		<difficult>0</difficult>
	</object>
	<object>
		<name>person</name>
		<bndbox>
			<xmax>45.5</xmax>
			<xmin>10</xmin>
			<ymax>30</ymax>
			<ymin>30</ymin>
		</bndbox>
		<difficult>1</difficult>
		<part>
			<name>head</name>
			<bndbox><xmin>11</xmin><ymin>30</ymin><xmax>12</xmax><ymax>30</ymax></bndbox>
		</part>
	</object>
</annotation>
"""
NOTHING = "<annotation><size><width>50</width><height>40</height></size></annotation>"


def of(*names):
    """An annotation with one clear object of each name, or a difficult one of ~name."""
    objects = "".join(
        f"<object><name>{name.lstrip('~')}</name><difficult>{int(name[0] == '~')}</difficult>"
        f"<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"
        for name in names
    )
    return NOTHING.replace("</annotation>", f"{objects}</annotation>")


def write(root, annotations, *, split="train"):
    """A VOC folder of these images, {ID: XML}, and a mask for each."""
    for name in ("JPEGImages", "Annotations", "SegmentationClass"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for number, (name, annotation) in enumerate(annotations.items()):
        (root / "Annotations" / f"{name}.xml").write_text(annotation)
        Image.new("RGB", (50, 40), (number, 0, 0)).save(root / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((40, 50), np.uint8)
        mask[:10], mask[10:12] = number, 255
        image = Image.fromarray(mask)
        image.putpalette([7, 0, 3] * 256)
        image.save(root / "SegmentationClass" / f"{name}.png")
    for kind in ("Main", "Segmentation"):
        (root / "ImageSets" / kind).mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / kind / f"{split}.txt").write_text("\n".join(annotations) + "\n")
    return root


@pytest.fixture
def root(tmp_path):
    annotations = {"2008_000008": DOG_AND_PERSON, "2008_000015": NOTHING}
    return write(tmp_path / "VOC2012", annotations)


def config(root, name=""):
    return {"source": "voc", "name": name, "data_dir": str(root)}


def one_sentence(error):
    message = str(error.value)
    assert "\n" not in message
    assert len(message) <= 600
    return message


def test_objects_are_counted_from_zero_edge_to_edge(root):
    source = open_source(config(root), "train", annotation="objects")
    assert source.class_names == CLASSES
    assert source.num_classes == len(set(CLASSES)) == 20
    assert sorted(CLASSES) == list(CLASSES)
    record = source[0]
    assert record["name"] == str(root / "JPEGImages/2008_000008.jpg")
    assert record["image"] == Path(record["name"]).read_bytes()
    objects = record["objects"]
    assert objects["boxes"].tolist() == [[0, 1, 50, 40], [9, 29, 45.5, 30]]
    assert objects["labels"].tolist() == [CLASSES.index("dog"), CLASSES.index("person")]
    assert objects["difficult"].tolist() == [False, True]
    assert objects["image_id"] == 0
    assert objects.keys() == {"boxes", "labels", "difficult", "image_id"}


def test_an_image_may_have_no_objects(root):
    objects = open_source(config(root), "train", annotation="objects")[1]["objects"]
    assert (objects["boxes"].shape, objects["boxes"].dtype) == ((0, 4), np.float32)
    assert (objects["labels"].shape, objects["labels"].dtype) == ((0,), np.int32)
    assert (objects["difficult"].shape, objects["difficult"].dtype) == ((0,), bool)
    assert objects["image_id"] == 1


def test_classes_of_difficult_objects_alone_count_nowhere(root):
    source = open_source(config(root), "train", annotation="classes")
    labels = [source[index]["label"] for index in range(2)]
    assert np.flatnonzero(labels[0] == 1).tolist() == [CLASSES.index("dog")]
    assert np.flatnonzero(labels[0] == 255).tolist() == [CLASSES.index("person")]
    assert labels[1].tolist() == [0] * 20
    assert labels[0].dtype == np.uint8


def test_one_class_where_all_clear_objects_have_it(tmp_path):
    annotations = {
        "none": NOTHING,
        "cats": of("cat", "cat", "~dog"),
        "both": of("cat", "dog"),
        "hidden": of("~cat"),
        "dog": of("dog"),
    }
    source = open_source(config(write(tmp_path, annotations)), "train")
    names = [Path(source[index]["name"]).stem for index in range(len(source))]
    assert names == ["cats", "dog"]
    assert [source[index]["label"] for index in range(2)] == [7, 11]
    assert type(source[0]["label"]) is int
    only_both = write(tmp_path / "second", {"both": of("cat", "dog")})
    with pytest.raises(InputError, match="no image of split 'train' has objects of one class"):
        open_source(config(only_both), "train")


def test_masks_are_the_numbers_of_the_palette(root):
    source = open_source(config(root), "train", annotation="masks")
    assert source.class_names == ("background", *CLASSES)
    mask = source[1]["mask"]
    assert (mask.shape, mask.dtype) == ((40, 50), np.uint8)
    np.testing.assert_array_equal(mask[:, 0], [1] * 10 + [255] * 2 + [0] * 28)
    assert (mask == mask[:, :1]).all()


@pytest.mark.parametrize("annotation", ["class", "classes", "objects", "masks"])
def test_a_source_survives_pickling(root, annotation):
    source = open_source(config(root), "train", annotation=annotation)
    copied = pickle.loads(pickle.dumps(source))
    assert copied.class_names == source.class_names
    for index in range(len(source)):
        np.testing.assert_equal(copied[index], source[index])


def test_flags_behind_the_names_of_images_are_passed_over(root):
    (root / "ImageSets/Main/dog_train.txt").write_text("2008_000015  1\n\n2008_000008 -1\n")
    source = VocSource(root, "dog_train")
    assert [Path(source[index]["name"]).stem for index in range(2)] == [
        "2008_000015",
        "2008_000008",
    ]


def test_years_of_a_devkit(tmp_path):
    """Named in the split, joined by a plus sign, and left out where there is one."""
    write(tmp_path / "VOC2012", {"a": of("cat"), "b": of("dog")})
    one = open_source(config(tmp_path), "train", annotation="objects")
    assert len(one) == 2
    write(tmp_path / "VOC2007", {"c": of("cow")}, split="trainval")
    both = open_source(config(tmp_path), "VOC2007/trainval+VOC2012/train", annotation="objects")
    assert [Path(both[i]["name"]).stem for i in range(3)] == ["c", "a", "b"]
    assert [both[i]["objects"]["image_id"] for i in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match=r"holds VOC2007, VOC2012: say .* 'VOC2012/train'"):
        open_source(config(tmp_path), "train", annotation="objects")
    with pytest.raises(InputError, match=r"unknown folder of .*: 'VOC2021'.* Known: VOC2007, VOC2"):
        open_source(config(tmp_path), "VOC2021/train", annotation="objects")
    (tmp_path / "VOC2007/classes.txt").write_text("cow\n")
    with pytest.raises(InputError, match=r"have different classes: give them the same classes\.t"):
        open_source(config(tmp_path), "VOC2007/trainval+VOC2012/train", annotation="objects")


def test_a_set_brings_its_own_classes(tmp_path):
    root = write(tmp_path, {"a": of("zebra", "yak")})
    (root / "classes.txt").write_text("zebra\n yak \n\n")
    source = open_source(config(root), "train", annotation="objects")
    assert source.class_names == ("zebra", "yak")
    assert source[0]["objects"]["labels"].tolist() == [0, 1]
    with pytest.raises(InputError, match="20 only in evaluation"):
        require_same_classes(source, VocSource(write(tmp_path / "b", {"a": NOTHING}), "train"))
    (root / "classes.txt").write_text("zebra\nzebra\n")
    with pytest.raises(InputError, match=r"classes\.txt must have one class a line, and each once"):
        open_source(config(root), "train", annotation="objects")


def broken(old, new):
    assert old in DOG_AND_PERSON
    return DOG_AND_PERSON.replace(old, new)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (DOG_AND_PERSON[:300], "line 16: unclosed token; put a complete XML file"),
        (broken("</size>", "</sise>"), "line 8: mismatched tag"),
        (broken("dog<", "dgo<"), r"line 10: 'dgo': did you mean dog\?"),
        (broken("<xmin>1<", "<xmin>0<"), r"line 14: the box xmin=0, ymin=2, xmax=50, ymax=40 is"),
        (broken("<xmax>50<", "<xmax>51<"), "line 14: .* not inside the image of 50x40 pixels"),
        (broken("<ymin>2<", "<ymin>41<"), "line 14: .* is empty or not inside"),
        (broken("<xmax>50<", "<xmax>right<"), "line 17: <xmax> is 'right', and must be a number"),
        (broken("<xmax>50<", "<xmax>nan<"), "line 14: the box xmin=1, ymin=2, xmax=nan"),
        (broken("<xmin>1</xmin>", ""), "line 14: <bndbox> has no <xmin>: add it"),
        (broken("<name>dog</name>", ""), "line 9: <object> has no <name>: add it"),
        ("<annotation>\n<object></object></annotation>", "line 1: <annotation> has no <size>"),
        ("", "line 1: no element found"),
    ],
    ids=itertools.count(),
)
def test_a_wrong_annotation_is_a_sentence_with_file_and_line(root, annotation, words):
    (root / "Annotations/2008_000008.xml").write_text(annotation)
    source = open_source(config(root), "train", annotation="objects")
    with pytest.raises(InputError, match=rf"2008_000008\.xml, {words}") as error:
        source[0]
    one_sentence(error)
    with pytest.raises(InputError, match=words):
        open_source(config(root), "train", annotation="class")


@pytest.mark.parametrize(
    ("annotation", "file"),
    [
        ("objects", "JPEGImages/2008_000008.jpg"),
        ("objects", "Annotations/2008_000008.xml"),
        ("masks", "SegmentationClass/2008_000008.png"),
    ],
)
def test_a_missing_file_is_a_sentence(root, annotation, file):
    (root / file).unlink()
    source = open_source(config(root), "train", annotation=annotation)
    with pytest.raises(InputError, match=rf"{file} cannot be read \(No such file") as error:
        source[0]
    one_sentence(error)


def saved(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (saved(np.zeros((40, 50, 3), np.uint8)), "an image of mode RGB: use a palette or grey"),
        (saved(np.full((40, 50), 21, np.uint8)), "pixels of class 21: the classes are 0 to 20"),
        (b"nothing", r"cannot be read as an image \(Pillow does not know its format\)"),
    ],
)
def test_a_wrong_mask_is_a_sentence(root, content, words):
    (root / "SegmentationClass/2008_000008.png").write_bytes(content)
    source = open_source(config(root), "train", annotation="masks")
    with pytest.raises(InputError, match=rf"SegmentationClass/2008_000008\.png .*{words}") as error:
        source[0]
    one_sentence(error)


def test_a_missing_split_gets_the_present_ones(root):
    with pytest.raises(InputError, match=r"unknown split of .*: 'trian': did you mean train\?"):
        open_source(config(root), "trian", annotation="objects")
    (root / "ImageSets/Main/train.txt").write_text("\n")
    with pytest.raises(InputError, match=r"Main/train\.txt lists no image"):
        open_source(config(root), "train", annotation="objects")
    (root / "ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(InputError, match=r"ImageSets/Segmentation' holds no list: put"):
        open_source(config(root), "train", annotation="masks")


@pytest.mark.parametrize("missing", ["", "nowhere"])
def test_a_folder_of_another_layout_is_a_sentence(tmp_path, missing):
    with pytest.raises(InputError, match="is no VOC folder: give data_dir the folder") as error:
        open_source(config(tmp_path / missing), "train", annotation="objects")
    one_sentence(error)


def test_an_unknown_annotation_gets_the_known_ones(root):
    with pytest.raises(InputError, match=r"unknown annotation 'boxes': .*objects"):
        open_source(config(root), "train", annotation="boxes")

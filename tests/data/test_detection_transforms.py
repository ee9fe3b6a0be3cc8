import copy

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from flaxattn.data import eval_batches, eval_transform, train_batches, train_transform
from flaxattn.data.voc import VocSource
from flaxattn.errors import InputError
from tests.images.pictures import encoded, noise, quick, seeds, sides

CONFIG = {
    "channels": 3,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "min_size": 40,
    "max_size": 64,
    "canvas": (64, 64),
    "max_objects": 4,
    "augment": {"flip": True},
}


def evaluated(record, **fields):
    return eval_transform({**CONFIG, **fields}, annotation="objects")(record)


def trained(record, seed=0, **fields):
    transform = train_transform({**CONFIG, **fields}, annotation="objects")
    return transform(record, np.random.default_rng(seed))


def record(height, width, *, boxes=(), difficult=None, seed=0):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return {
        "image": encoded(noise(height, width, 3, seed)),
        "name": "VOC2012/a.jpg",
        "objects": {
            "boxes": boxes,
            "labels": np.arange(5, 5 + len(boxes), dtype=np.int32),
            "difficult": np.array(difficult or [False] * len(boxes), bool),
            "image_id": 17,
        },
    }


TWO = [[1, 2, 11, 20], [0, 0, 25, 20]]


@pytest.mark.parametrize(("height", "width"), [(20, 25), (25, 20), (90, 100), (30, 90), (64, 64)])
def test_the_resizing_is_torchvisions(height, width):
    import torch

    from tests.torch_reference.torchvision_shim import torchvision

    transform = torchvision.models.detection.transform.GeneralizedRCNNTransform(
        40, 64, CONFIG["mean"], CONFIG["std"]
    )
    given = record(height, width, boxes=[[1, 2, 11, 20], [0, 0, width, height]])
    pixels = torch.from_numpy(noise(height, width, 3)).permute(2, 0, 1).double() / 255
    target = {"boxes": torch.from_numpy(given["objects"]["boxes"])}
    images, (target,) = transform([pixels], [target])
    rows, columns = images.image_sizes[0]
    expected = images.tensors[0, :, :rows, :columns].permute(1, 2, 0).numpy()
    ours = evaluated(given)
    assert ours["size"].tolist() == [rows, columns]
    assert ours["original_size"].tolist() == [height, width]
    np.testing.assert_allclose(ours["image"][:rows, :columns], expected, atol=2e-5)
    assert not ours["image"][rows:].any()
    assert not ours["image"][:, columns:].any()
    np.testing.assert_array_equal(ours["boxes"][:2], target["boxes"].numpy())


def test_the_schema_of_an_example():
    example = evaluated(record(20, 25, boxes=TWO, difficult=[True, False]))
    assert {name: (value.shape, value.dtype) for name, value in example.items()} == {
        "image": ((64, 64, 3), np.float32),
        "size": ((2,), np.int32),
        "original_size": ((2,), np.int32),
        "boxes": ((4, 4), np.float32),
        "labels": ((4,), np.int32),
        "valid": ((4,), bool),
        "difficult": ((4,), bool),
        "image_id": ((), np.int32),
    }
    assert example["size"].tolist() == [40, 50]
    assert example["boxes"].tolist() == [[2, 4, 22, 40], [0, 0, 50, 40], [0] * 4, [0] * 4]
    assert example["labels"].tolist() == [5, 6, 0, 0]
    assert example["valid"].tolist() == [True, True, False, False]
    assert example["difficult"].tolist() == [True, False, False, False]
    assert example["image_id"] == 17


def test_difficult_objects_are_not_trained_on():
    example = trained(record(20, 25, boxes=TWO, difficult=[True, False]))
    assert example["labels"].tolist() == [6, 0, 0, 0]
    assert example["valid"].tolist() == [True, False, False, False]
    assert not example["difficult"].any()


@pytest.mark.parametrize("transform", [evaluated, trained])
def test_an_image_without_objects(transform):
    example = transform(record(20, 25))
    assert example["boxes"].shape == (4, 4)
    assert not example["valid"].any()


@quick
@given(seed=seeds, height=sides, width=sides)
def test_boxes_are_mirrored_with_the_image(seed, height, width):
    """The one pixel of ink lies in the middle of its box, mirrored or not."""
    random = np.random.default_rng(seed)
    top, left = int(random.integers(height)), int(random.integers(width))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top, left] = 255
    given = record(height, width, boxes=[[left, top, left + 1, top + 1]])
    given["image"] = encoded(pixels)
    fields = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    plain, mirrored = (trained(given, seed, **fields) for seed in (FLIPPED, 0))
    for example in (plain, mirrored):
        box = example["boxes"][0]
        column, row = np.floor((box[:2] + box[2:]) / 2).astype(int)
        # It is up to half a new pixel, 0.3 of an old one, off the middle of a new one, both ways.
        assert example["image"][row, column, 0] > 0.45
    across = plain["boxes"][0, [0, 2]] + mirrored["boxes"][0, [2, 0]]
    np.testing.assert_allclose(across, plain["size"][1], rtol=1e-5)


def mirrors(seed):
    return trained(record(4, 4, boxes=[[0, 0, 1, 4]]), seed)["boxes"][0, 0] > 0


FLIPPED = next(seed for seed in range(100) if mirrors(seed) != mirrors(0))


def test_every_other_image_is_mirrored_or_none():
    assert 30 < sum(mirrors(seed) for seed in range(100)) < 70
    given = record(4, 4, boxes=[[0, 0, 1, 4]])
    assert not any(
        trained(given, seed, augment={"flip": False})["boxes"][0, 0] for seed in range(9)
    )


def test_one_of_several_sizes_is_drawn_and_the_last_evaluated():
    given = record(20, 20)
    drawn = {int(trained(given, seed, min_size=(20, 30, 40))["size"][0]) for seed in range(40)}
    assert drawn == {20, 30, 40}
    assert evaluated(given, min_size=[20, 30])["size"].tolist() == [30, 30]


def test_what_does_not_fit_on_the_canvas_is_made_smaller():
    upright = evaluated(record(40, 20, boxes=[[0, 0, 20, 40]]), canvas=(32, 64))
    assert upright["image"].shape == (32, 64, 3)
    assert upright["size"].tolist() == [32, 16]
    assert upright["boxes"][0].tolist() == [0, 0, 16, 32]
    oblong = evaluated(record(20, 40, boxes=[[0, 0, 40, 20]]), canvas=(64, 32))
    assert oblong["size"].tolist() == [16, 32]
    assert oblong["boxes"][0].tolist() == [0, 0, 32, 16]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1)])
def test_tiny_and_narrow_images(height, width):
    example = evaluated(record(height, width, boxes=[[0, 0, width, height]]))
    assert example["size"].min() >= 1
    assert example["boxes"][0].tolist() == [0, 0, *example["size"][::-1].tolist()]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_an_image_of_another_mode_among_many(mode, tmp_path):
    form = "TIFF" if mode == "CMYK" else "PNG"
    Image.new(mode, (25, 20)).save(tmp_path / "a", format=form)
    given = record(20, 25, boxes=TWO) | {"image": (tmp_path / "a").read_bytes()}
    for channels, statistics in ((3, CONFIG["mean"]), (1, (0.5,))):
        example = evaluated(given, channels=channels, mean=statistics, std=statistics)
        assert example["image"].shape == (64, 64, channels)


def test_more_objects_than_there_is_room_for_are_an_error():
    given = record(20, 25, boxes=[[0, 0, 1, 1]] * 6, difficult=[True] * 2 + [False] * 4)
    assert trained(given)["valid"].all()
    with pytest.raises(InputError, match=r"a\.jpg has 6 objects, more than max_objects=4: use "):
        evaluated(given)
    assert evaluated(given, max_objects=6)["valid"].all()


@pytest.mark.parametrize(
    "box", [[-1, 0, 5, 5], [0, 0, 26, 5], [0, 0, 5, 21], [5, 0, 5, 5], [0, np.nan, 5, 5]]
)
@pytest.mark.parametrize("transform", [evaluated, trained])
def test_a_box_that_is_not_inside_the_image_is_a_sentence(transform, box):
    with pytest.raises(InputError, match=r"a\.jpg is an image of 25x20 .* empty or not inside it"):
        transform(record(20, 25, boxes=[*TWO, box]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_objects": 0}, "max_objects=0 is below 1"),
        ({"min_size": 0}, "min_size=0 and max_size=64: use sizes above 0"),
        ({"min_size": ()}, r"min_size=\(\) and max_size=64"),
        ({"min_size": (20, 65)}, r"min_size=\(20, 65\) and max_size=64: .* at least min_size"),
        ({"canvas": (64,)}, r"canvas=\(64,\) must be a height and a width, both above 0"),
        ({"canvas": (64, 0)}, r"canvas=\(64, 0\) must be"),
        ({"channels": 2}, "channels=2 must be 1"),
        ({"std": (0.1, 0.1)}, "do not fit 3 channels"),
    ],
)
@pytest.mark.parametrize("transform", [train_transform, eval_transform])
def test_values_that_do_not_go_together_are_refused(transform, fields, words):
    with pytest.raises(InputError, match=words):
        transform({**copy.deepcopy(CONFIG), **fields}, annotation="objects")


def test_scenes_go_through_the_pipeline(scenes_root):
    config = {**CONFIG, "canvas": (128, 128), "min_size": 96, "max_size": 128, "max_objects": 6}
    train, val = (VocSource(scenes_root, split) for split in ("train", "val"))
    batches = train_batches(
        train, train_transform(config, annotation="objects"), batch_size=4, seed=0
    )
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (4, 128, 128, 3)
    assert batch["boxes"].shape == (4, 6, 4)
    assert batch["valid"].any(axis=1).all()
    evaluation = list(eval_batches(val, eval_transform(config, annotation="objects"), batch_size=4))
    assert [each["image_id"].tolist() for each in evaluation] == [[0, 1, 2, 3], [4, 5, 5, 5]]
    assert [each["mask"].tolist() for each in evaluation] == [[1, 1, 1, 1], [1, 1, 0, 0]]

"""python -m flaxattn predict for detectors and segmenters: lines, pictures, refusals."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from flaxattn import detect, from_pretrained, initialise, segment, weights
from flaxattn.__main__ import main
from flaxattn.images.decoding import decode
from flaxattn.models.detection import create_detector
from flaxattn.models.segmentation import create_segmenter
from flaxattn.prediction.report import of_objects, of_pixels
from tests.images.pictures import noise

DETECTOR = {
    "body": {"name": "resnet10", "width": 8, "stage_sizes": (1, 1)},
    "taps": ((1, -1), (2, -1)),
    "features": 8,
    "proposals": {"anchor_sizes": ((16,), (32,), (64,)), "pre_nms_test": 50, "post_nms_test": 20},
    "heads": {"hidden_features": 8, "num_candidates": 40, "num_detections": 6},
}
SEGMENTER = {
    "backbone": {"stage_sizes": (1, 1), "width": (8, 8)},
    "head": {"features": 8},
    "places": ((1, -1), (2, -1)),
    "aux_place": (2, -1),
}
NAMES = ["cat", "dog", "newt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What runs of train.py leave in two directories, and two pictures of one name."""
    folder = tmp_path_factory.mktemp("folder")
    detector = create_detector("fasterrcnn_resnet50_fpn", 4, **DETECTOR)
    segmenter = create_segmenter("lraspp_resnet10", 3, **SEGMENTER)
    for name, model, size, fields, config in (
        (
            "fasterrcnn_resnet50_fpn",
            detector,
            64,
            DETECTOR,
            {"num_classes": 4, "min_size": [48], "max_size": 64, "canvas": [64, 64]},
        ),
        ("lraspp_resnet10", segmenter, 32, SEGMENTER, {"num_classes": 3, "eval_resize": 32}),
    ):
        stated = {"architecture": name, "model_fields": fields, "label_names": NAMES, **config}
        (folder / name).mkdir()
        variables = initialise(model, jax.random.key(0), (1, size, size, 3))
        weights.write(folder / name / "model.npz", variables, config=stated)
    for i, place in enumerate(("a", "b")):
        (folder / place).mkdir()
        Image.fromarray(noise(40, 50, 3, seed=i)).save(folder / place / "cat.png")
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    return folder / "fasterrcnn_resnet50_fpn"


@pytest.fixture(scope="module")
def segmenter(folder):
    return folder / "lraspp_resnet10"


@pytest.fixture(scope="module")
def pictures(folder):
    return [folder / "a" / "cat.png", folder / "b" / "cat.png"]


def command(capsys, *arguments):
    """The lines of a command that succeeds."""
    assert main(["predict", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


def refused(capsys, *arguments):
    """The sentence of a command that does not."""
    assert main(["predict", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_objects(capsys, detector, pictures, tmp_path):
    out = tmp_path / "new" / "out"
    given = (*pictures, "--weights", detector, "--threshold", "0.1", "--out", out)
    lines = command(capsys, *given)
    model, variables, preprocessing = from_pretrained(detector)
    assert preprocessing.canvas == (64, 64)
    found = detect(
        model, variables, pictures, preprocessing=preprocessing, classes=NAMES, threshold=0.1
    )
    expected = []
    drawings = [out / "cat.png", out / "cat_2.png"]
    for path, objects, drawing in zip(pictures, found, drawings, strict=True):
        assert objects
        expected += [str(path), *(f"  {line}" for line in of_objects(objects).lines)]
        expected.append(f"  {drawing}")
        pixels, drawn = decode(path, channels=3), decode(drawing, channels=3)
        assert drawn.shape == pixels.shape
        assert (drawn != pixels).any()
    assert lines == expected
    assert re.fullmatch(r"  0\.\d{4}  (cat|dog|newt) ( \d+\.\d){4}", lines[1])

    before = drawings[0].read_bytes()
    command(capsys, *given)  # which leaves what is there alone
    assert drawings[0].read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == [
        *("cat.png", "cat_2.png", "cat_3.png", "cat_4.png")
    ]
    assert command(capsys, pictures[0], "--weights", detector, "--threshold", "1") == [
        str(pictures[0])
    ]


def test_classes_of_pixels(capsys, segmenter, pictures):
    own = pictures[0].read_bytes()
    lines = command(capsys, pictures[0], "--weights", segmenter, "--out", pictures[0].parent)
    model, variables, preprocessing = from_pretrained(segmenter)
    (classes,) = segment(model, variables, pictures[0], preprocessing=preprocessing)
    drawing = pictures[0].with_name("cat_2.png")
    report = of_pixels(classes, NAMES)
    assert lines == [str(pictures[0]), *(f"  {line}" for line in report.lines), f"  {drawing}"]
    assert sum(float(line.split()[0]) for line in lines[1:-1]) == pytest.approx(1, abs=2e-4)
    assert pictures[0].read_bytes() == own
    pixels = decode(pictures[0], channels=3)
    np.testing.assert_array_equal(decode(drawing, channels=3), report.draw(pixels))
    drawing.unlink()


def test_the_shares_of_classes_that_are_there():
    classes = np.array([[2, 2, 0], [2, 2, 0]], np.uint8)
    assert of_pixels(classes, NAMES).lines == ["0.6667  newt", "0.3333  cat"]
    assert of_pixels(classes).lines == ["0.6667  2", "0.3333  0"]


def test_labels_in_a_file(capsys, detector, segmenter, pictures, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("un chat\nun chien\n", encoding="utf-8")
    given = (pictures[0], "--labels", labels, "--weights")
    assert "2 names for the 3 classes of the model: give" in refused(capsys, *given, segmenter)
    assert "2 names for the 3 classes of the model, without the background: give" in refused(
        capsys, *given, detector
    )


@pytest.mark.parametrize(
    ("network", "flags", "sentence"),
    [
        ("detector", ["--top", "3"], "--top 3: fasterrcnn_resnet50_fpn is a detector, and this is"),
        (
            "segmenter",
            ["--top", "3"],
            "is a segmenter, and this is for classifiers",
        ),
        ("segmenter", ["--threshold", "0.5"], "--threshold 0.5: lraspp_resnet10 is a segmenter"),
        ("detector", ["--threshold", "2"], "threshold=2.0 must be 0 to 1"),
        ("detector", ["--num-classes", "9"], "only the head differs"),
        ("segmenter", ["--model", "lraspp_resnet11"], "did you mean lraspp_resnet10"),
    ],
)
def test_what_cannot_be(capsys, request, pictures, network, flags, sentence):
    source = request.getfixturevalue(network)
    assert sentence in refused(capsys, pictures[0], "--weights", source, *flags)


def test_a_folder_that_cannot_be_made(capsys, segmenter, pictures):
    assert (
        main(["predict", *map(str, (pictures[0], "--weights", segmenter, "--out", pictures[1]))])
        == 2
    )
    assert f"cannot write a picture to {pictures[1]}" in capsys.readouterr().err


def test_detectors_and_segmenters_go_to_torch_and_back(capsys, folder, tmp_path):
    for name in ("fasterrcnn_resnet50_fpn", "lraspp_resnet10"):
        torchs, back = tmp_path / f"{name}.pth", tmp_path / f"{name}.npz"
        assert main(["convert", str(folder / name), str(torchs), "--to", "torch"]) == 0
        assert main(["convert", str(torchs), str(back)]) == 0
        original = weights.read(folder / name)
        for key, array in weights.read(back).items():
            np.testing.assert_array_equal(array, original[key], strict=True)
        assert "(torchvision)" in capsys.readouterr().out

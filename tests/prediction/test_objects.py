"""From image files of several sizes to the objects that torchvision finds in each alone."""

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from flaxattn import InputError, detect
from flaxattn.weights import DetectorPreprocessing
from tests.images.pictures import noise
from tests.models.detection import reduced
from tests.prediction.traces import traces
from tests.torch_reference.torchvision_shim import torchvision

PREPROCESSING = DetectorPreprocessing(64, 96)
SIZES = [(50, 70), (70, 50), (45, 63)]  # on canvases of (64, 96), (96, 64) and (64, 96)
NAMES = [f"thing {i}" for i in range(reduced.CLASSES - 1)]


@pytest.fixture(scope="module")
def pair():
    """A detector and its variables, and torchvision's, all in float32."""
    model, reference = reduced.reduced("resnet")
    with torch.no_grad():
        model, variables, reference = reduced.calibrated(model, reference.double())
    reference.transform.min_size = (PREPROCESSING.min_size,)
    reference.transform.max_size = PREPROCESSING.max_size
    return model, variables, reference.float().eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(len(SIZES))]
    for i, (path, size) in enumerate(zip(paths, SIZES, strict=True)):
        Image.fromarray(noise(*size, 3, seed=i)).save(path)
    return paths


def test_an_image_alone_has_torchvisions_objects(pair, pictures):
    model, variables, reference = pair
    given = {"preprocessing": PREPROCESSING, "classes": NAMES, "threshold": 0.3}
    with traces() as shapes:
        found = detect(model, variables, pictures, **given)
        again = detect(model, variables, pictures[2], **given)
    assert shapes == [(2, 64, 96, 3), (1, 96, 64, 3), (1, 64, 96, 3)]
    assert [one.label for one in again[0]] == [one.label for one in found[2]]

    to_tensor = torchvision.transforms.functional.to_tensor
    for path, objects in zip(pictures, found, strict=True):
        with torch.no_grad():
            (theirs,) = reference([to_tensor(Image.open(path))])
        kept = theirs["scores"] >= 0.3
        assert len(objects) == kept.sum() > 3
        assert [one.label + 1 for one in objects] == theirs["labels"][kept].tolist()
        assert all(one.name == NAMES[one.label] for one in objects)
        scores = [one.score for one in objects]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, theirs["scores"][kept], atol=1e-4)
        boxes = [one.box for one in objects]
        np.testing.assert_allclose(boxes, theirs["boxes"][kept], atol=1e-3)


def test_a_larger_multiple_is_one_program_for_all(pair, pictures):
    model, variables, _ = pair
    preprocessing = PREPROCESSING._replace(multiple=96)
    with traces() as shapes:
        found = detect(model, variables, pictures, preprocessing=preprocessing)
    assert shapes == [(3, 96, 96, 3)]
    for (height, width), objects in zip(SIZES, found, strict=True):
        assert all(one.name == str(one.label) and one.score >= 0.5 for one in objects)
        boxes = np.array([one.box for one in objects])
        assert (boxes >= 0).all()
        assert (boxes <= np.array([width, height, width, height]) + 1e-3).all()
        assert boxes[:, 2:].max() > 0.5 * max(height, width)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"threshold": 1.5}, "threshold=1.5 must be 0 to 1"),
        ({"threshold": -0.1}, "threshold=-0.1 must be 0 to 1"),
        ({"classes": ["cat"]}, "1 names for the 4 classes of the model, without the background"),
        ({"images": []}, "there are no images"),
        ({"preprocessing": PREPROCESSING._replace(multiple=48)}, "multiple=48 must be a multiple"),
        (
            {"preprocessing": PREPROCESSING._replace(mean=(0.5,), std=(0.5,))},
            r"has 1 channels, but the kernel backbone/body/conv1 .* takes 3: use",
        ),
    ],
)
def test_what_cannot_be(pair, pictures, fields, sentence):
    model, variables, _ = pair
    given = {"images": pictures, "preprocessing": PREPROCESSING, **fields}
    with pytest.raises(InputError, match=sentence):
        detect(model, variables, given.pop("images"), **given)


def test_a_broken_file_is_named(pair, pictures, tmp_path):
    model, variables, _ = pair
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:200])
    for path in (broken, tmp_path / "nothing.png"):
        with pytest.raises(InputError, match=f"{path} cannot be read as an image"):
            detect(model, variables, [path, pictures[0]], preprocessing=PREPROCESSING)


def test_what_is_found_is_of_plain_numbers(pair, pictures):
    """So that it can be written as JSON."""
    model, variables, _ = pair
    (found,) = detect(
        model, jax.device_put(variables), str(pictures[1]), preprocessing=PREPROCESSING
    )
    for one in found:
        assert [type(value) for value in one] == [int, str, float, tuple]
        assert {type(edge) for edge in one.box} == {float}

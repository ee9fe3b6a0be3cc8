"""Class activation maps against references from the papers, at layers of any network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn import InputError, create_model, weights
from flaxattn.inspect import METHODS, class_activation_maps, heat_maps
from flaxattn.inspect.class_score import class_score
from flaxattn.inspect.layer_output import find_layer
from flaxattn.layers.abstract_variables import abstract_variables
from flaxattn.models import ResNet
from flaxattn.models.detection import Detections, create_detector
from flaxattn.models.segmentation import create_segmenter
from flaxattn.models.vgg import VGG
from tests.models.detection.test_faster_rcnn import batch, small, small_variables
from tests.torch_reference import class_activation
from tests.torch_reference.torchvision_shim import timm

CLASSES = np.array([2, 0])


class Features(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(5, (3, 3), strides=2, name="conv")(x))


class Net(nn.Module):
    """A network of plain Linen; `deep` puts a layer behind the one that is looked at."""

    deep: bool = True

    @nn.compact
    def __call__(self, x, *, scale=1.0):
        x = scale * Features(name="features")(x)
        if self.deep:
            x = nn.relu(nn.Conv(6, (3, 3), name="behind")(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


def network(**fields):
    model = Net(**fields)
    images = jax.random.normal(jax.random.key(1), (2, 12, 10, 3))
    return model, model.init(jax.random.key(0), images), images


def maps_by(method, model, **options):
    options = {"layer": "features", "classes": CLASSES} | options
    return jax.jit(functools.partial(class_activation_maps, model, method=method, **options))


def as_torch(variables):
    """The parts of Net in float64 before and behind the layer."""
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a, np.float64)), variables["params"])

    def conv(x, layer, stride=1):
        # Flax's SAME pads an even side by (0, 1) for strides of 2.
        x = torch.nn.functional.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        kernel = layer["kernel"].permute(3, 2, 0, 1)
        return torch.relu(torch.nn.functional.conv2d(x, kernel, layer["bias"], stride))

    def before(image):
        return conv(image[None], p["features"]["conv"], 2)[0]

    def behind(maps, label):
        x = conv(maps[None], p["behind"])[0].mean(dim=(1, 2))
        return x @ p["head"]["kernel"][:, label] + p["head"]["bias"][label]

    return before, behind


@pytest.mark.parametrize("method", METHODS)
def test_as_the_paper_says(method):
    model, variables, images = network()
    found = maps_by(method, model, chunk=2)(variables, images)
    before, behind = as_torch(variables)
    assert found.dtype == jnp.float32
    for image, label, one in zip(np.asarray(images, np.float64), CLASSES, found, strict=True):
        image = torch.tensor(image.transpose(2, 0, 1))
        maps = before(image).requires_grad_()
        score = functools.partial(behind, label=int(label))
        given = () if method == "eigen_cam" else (score,)
        if method == "score_cam":
            given = image, lambda x, score=score: score(before(x))
        expected = getattr(class_activation, method)(maps, *given).detach().numpy()
        assert expected.max() > 0
        np.testing.assert_allclose(one, expected, atol=1e-5 * expected.max())


def test_grad_cam_of_a_linear_head_is_the_class_activation_map():
    """Zhou et al. 2016 (arXiv:1512.04150): the head's weights of the class times the maps."""
    model, variables, images = network(deep=False)
    found = maps_by("grad_cam", model)(variables, images)
    maps = Features().apply({"params": variables["params"]["features"]}, images)
    weights_of = variables["params"]["head"]["kernel"][:, CLASSES]
    expected = jax.nn.relu(jnp.einsum("nhwc,cn->nhw", maps, weights_of)) / maps[0, :, :, 0].size
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.max())


@pytest.mark.parametrize("method", METHODS)
def test_other_weights_give_another_map(method):
    """The sanity check of Adebayo et al. 2018 (arXiv:1810.03292): no edge detector passes it."""
    model, variables, images = network()
    look = maps_by(method, model)
    drawn = model.init(jax.random.key(7), images)
    own, other = (np.ravel(look(v, images)[0]) for v in (variables, drawn))
    assert own.std() > 0
    assert other.std() == 0 or np.corrcoef(own, other)[0, 1] < 0.9


def test_the_class_is_the_likeliest_unless_it_is_said_and_images_stand_alone():
    model, variables, images = network()
    logits = model.apply(variables, images)
    likeliest = maps_by("grad_cam", model, classes=None)(variables, images)
    best = maps_by("grad_cam", model, classes=jnp.argmax(logits, axis=-1))
    np.testing.assert_array_equal(likeliest, best(variables, images))
    single = maps_by("grad_cam", model, classes=None)(variables, images[1:])
    np.testing.assert_allclose(single, likeliest[1:], atol=1e-6)


def test_a_score_of_ones_own_and_fields_of_the_call():
    model, variables, images = network(deep=False)
    twice = maps_by("layer_cam", model, classes=1, scale=2.0)(variables, images)
    own = maps_by("layer_cam", model, score=lambda logits: 2 * logits[:, 1])(variables, images)
    np.testing.assert_allclose(own, twice, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "gradcam"}, "unknown method 'gradcam': did you mean grad_cam"),
        ({"layer": "feature"}, "unknown layer 'feature': did you mean features"),
        ({"layer": "head"}, r"layer='head' returns \(2, 3\): name one that is called once"),
        ({"layer": None}, "layer=None is for the backbones of flaxattn, and Net has none: name"),
        ({"classes": 3}, "classes=3 must be 0 to 2"),
        ({"classes": [0, -1]}, "classes=-1 must be 0 to 2"),
        ({"classes": 1.0}, "classes=1.0 must be integers"),
        ({"classes": [0, 1, 2]}, r"classes of shape \(3,\) for 2 images"),
        ({"score": jnp.sum}, r"score=... makes \(\) of the outputs for 2 images"),
        ({"chunk": 0}, "chunk=0 is below 1"),
    ],
)
def test_what_is_refused(options, sentence):
    model, variables, images = network()
    look = maps_by(**{"method": "score_cam", "model": model} | options)
    with pytest.raises(InputError, match=sentence):
        jax.eval_shape(look, variables, images)


def test_a_layer_that_is_called_twice_is_refused():
    model = ResNet((2,), width=8, num_classes=3, attention={"name": "eca", "share": True})
    with pytest.raises(InputError, match="layer='layer1_se' is called 2 times: name one"):
        found(model, "layer1_se")


def found(model, layer=None, shape=(1, 64, 64, 3)):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    path, output = find_layer(model, abstract_variables(model, shape), images, layer, {})
    return "/".join(path), output.shape


SEGMENTER = create_segmenter("lraspp_resnet10", 3, backbone={"width": 8})
DETECTOR = create_detector(
    "fasterrcnn_resnet50_fpn",
    num_classes=3,
    body={"stage_sizes": (1, 1, 1, 2), "block": "basic", "width": 8},
    features=8,
    heads={"hidden_features": 16, "num_detections": 20},
)


@pytest.mark.parametrize(
    ("model", "layer", "path", "shape"),
    [
        (create_model("resnet18", width=8), None, "layer4_1", (1, 2, 2, 64)),
        (create_model("resnet18", width=8), "layer2_0/conv1", "layer2_0/conv1", (1, 8, 8, 16)),
        (create_model("mobilenetv3_small_050"), None, "blocks_5_0", (1, 2, 2, 288)),
        (VGG((1,) * 5, width=2, hidden_features=2), None, "conv5_1", (1, 4, 4, 16)),
        (SEGMENTER, None, "backbone/layer4_0", (1, 8, 8, 64)),
        pytest.param(
            DETECTOR, None, "backbone/body/layer4_1", (1, 2, 2, 64), marks=pytest.mark.slow
        ),
        (
            ResNet((2,), width=8, attention={"name": "dia", "share": True}),
            None,
            "layer1_1",
            (1, 16, 16, 32),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_layers_of_the_networks_here(model, layer, path, shape):
    assert found(model, layer) == (path, shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "model",
    [SEGMENTER, pytest.param(DETECTOR, marks=pytest.mark.slow)],
    ids=lambda model: type(model).__name__,
)
def test_segmenters_and_detectors(model, method):
    """Their scores are tested below; this is that gradients pass through all that they do."""
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = abstract_variables(model, images.shape)
    look = functools.partial(class_activation_maps, model, method=method, classes=1)
    _, shape = found(model)
    assert jax.eval_shape(look, variables, images).shape == (2, *shape[1:3])


@pytest.mark.slow
def test_a_detectors_map_is_of_what_it_finds():
    model, variables, images = small(), small_variables(), batch(2)[0]
    labels = np.asarray(jax.jit(model.apply)(variables, images).labels)
    look = jax.jit(
        lambda classes: class_activation_maps(
            model, variables, images, method="layer_cam", classes=classes
        )
    )
    heat = np.stack([look(jnp.asarray(label)) for label in (1, 2, 3)], axis=1)
    there = np.stack([(labels == label).any(axis=1) for label in (1, 2, 3)], axis=1)
    assert there.any()
    np.testing.assert_array_equal(heat.max(axis=(2, 3)) > 0, there)


def test_the_score_of_logits():
    logits = jnp.array([[0.0, 3.0, 1.0], [5.0, 4.0, 9.0]])
    np.testing.assert_array_equal(class_score(logits)(2 * logits), [6, 18])
    np.testing.assert_array_equal(class_score(logits, 1)(logits), [3, 4])
    np.testing.assert_array_equal(class_score(logits, np.array([2, 0]))(logits), [1, 5])


def test_the_score_of_pixels():
    """Of the pixels that the first outputs have as the class, whatever the others say."""
    classes = np.array([[[1, 1, 0], [2, 1, 2]]])
    logits = jnp.asarray(np.eye(3)[classes], jnp.float32)
    other = jnp.asarray(np.random.default_rng(0).normal(size=logits.shape), jnp.float32)
    for given, label in ((None, 1), (1, 1), (2, 2)):
        expected = other[..., label][classes == label].sum()
        np.testing.assert_allclose(class_score(logits, given)(other), [expected], rtol=1e-6)


def test_the_score_of_detections():
    labels = jnp.array([[2, 1, 2, 0], [0, 0, 0, 0]])
    scores = jnp.array([[0.9, 0.8, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    detections = Detections(jnp.zeros((2, 4, 4)), scores, labels, labels > 0)
    np.testing.assert_allclose(class_score(detections)(detections), [1.4, 0])
    np.testing.assert_allclose(class_score(detections, 1)(detections), [0.8, 0])
    with pytest.raises(InputError, match="classes=0 is below 1"):
        class_score(detections, 0)


def test_outputs_that_have_no_score_here():
    with pytest.raises(InputError, match=r"of type dict with 0 axes .* pass score"):
        class_score({"out": jnp.zeros((2, 3))})


def test_heat_maps_are_resized_and_scaled():
    maps = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    maps[1] = 0
    maps[2] = 7
    found = heat_maps(jnp.asarray(maps), (9, 10))
    resized = torch.nn.functional.interpolate(
        torch.tensor(maps[:1, None]), size=(9, 10), mode="bilinear"
    )[0, 0].numpy()
    expected = (resized - resized.min()) / (resized.max() - resized.min())
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    np.testing.assert_array_equal(found[1:], 0)


class Centred(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Centre(name="centre")(x)


class Centre(nn.Module):
    def __call__(self, x):
        return x - x.mean(axis=(1, 2), keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_as_pytorch_grad_cam_on_resnet18(method, monkeypatch):
    """With the differences that `class_activation_maps` names taken out of either."""
    theirs = pytest.importorskip(
        "pytorch_grad_cam",
        reason='make test-all installs it, with OpenCV: pip install "flaxattn[cam-check]"',
        exc_type=ImportError,
    )
    # Its Score-CAM aligns the corners of its masks.
    upsample = functools.partial(torch.nn.Upsample, mode="bilinear")
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", upsample)
    torch.manual_seed(0)
    reference = timm.create_model("resnet18", num_classes=10).eval()
    with torch.no_grad():
        # Its Grad-CAM++ adds 1e-6 to squares of gradients, which should be larger by far.
        reference.fc.weight.mul_(1e4 if method == "grad_cam_plus_plus" else 10)
    model = create_model("resnet18", num_classes=10)
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    variables = weights.load(model, state, (1, 64, 32, 3), naming="timm")
    images = np.random.default_rng(0).normal(size=(2, 64, 32, 3)).astype(np.float32)
    labels = [3, 5]

    name = {"grad_cam_plus_plus": "GradCAMPlusPlus"}.get(
        method, method.title().replace("_", "").replace("Cam", "CAM")
    )
    cam = getattr(theirs, name)(reference, [reference.layer1[1]])
    # It scales its maps with another library than torch: they are compared as they are before.
    made = []
    draw = cam.get_cam_image

    def keep(tensors, layer, targets, activations, *others):
        made[:] = [draw(tensors, layer, targets, activations, *others), activations]
        return made[0]

    monkeypatch.setattr(cam, "get_cam_image", keep)
    targets = [theirs.utils.model_targets.ClassifierOutputTarget(label) for label in labels]
    cam(torch.tensor(images.transpose(0, 3, 1, 2)), targets)
    expected, activations = made

    if method == "eigen_cam":  # it centres them, and leaves the sign to chance
        centred = class_activation_maps(
            Centred(), {}, activations.transpose(0, 2, 3, 1), method=method, layer="centre"
        )
        signs = [np.sign((one * raw).sum()) for one, raw in zip(centred, expected, strict=True)]
        found, expected = centred, np.reshape(signs, (2, 1, 1)) * expected
    else:
        found = maps_by(method, model, layer="layer1_1", classes=labels)(variables, images)
    expected = np.maximum(expected, 0)
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())

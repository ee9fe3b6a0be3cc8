"""The names of attention maps, what is under them, and that looking at them changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn import ATTENTION, InputError, create_attention
from flaxattn.attention import EfficientChannel
from flaxattn.attention.mechanism import layer_of, required_fields
from flaxattn.inspect import attention_maps
from flaxattn.layers.abstract_variables import abstract_variables
from flaxattn.layers.initialise import initialise
from flaxattn.models import ResNet
from flaxattn.models.detection import create_detector
from flaxattn.models.segmentation import create_segmenter
from flaxattn.models.vgg import VGG

SE = {"name": "se", "reduction": 4}


def shapes_of(model, shape=(2, 64, 32, 3)):
    """The maps' shapes by their names; nothing is computed."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = abstract_variables(model, shape)
    maps = jax.eval_shape(functools.partial(attention_maps, model), variables, images)
    return {name: leaf.shape for name, leaf in maps.items()}


class Inner(nn.Module):
    """Somebody's layer, with attention inside and its own beside it."""

    @nn.compact
    def __call__(self, x):
        x = create_attention("se", reduction=1)(x)
        self.sow("intermediates", "attention", {"whole": x, "first": x[:1]})
        return EfficientChannel(name="last")(x)


class Own(nn.Module):
    role = "recalibrate"

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("intermediates", "attention", x)
        return x


RESNET = functools.partial(ResNet, width=8, num_classes=3)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (
            RESNET((1, 1), attention={"name": "cbam", "reduction": 4, "variant": "timm"}),
            [f"layer{stage}_0/cbam/{half}" for stage in (1, 2) for half in ("channel", "spatial")],
        ),
        (
            RESNET((1, 1), attention=SE | {"graft": True}, conv={"name": "sk", "groups": 1}),
            ["layer1_0/conv2/sk", "layer1_0/se", "layer2_0/conv2/sk", "layer2_0/se"],
        ),
        (
            RESNET((1, 1), attention=SE, context=SE | {"stages": 2}),
            ["layer1_0/se", "layer2_0/se", "layer2_0/context/se"],
        ),
        (
            RESNET((1,), context={"name": "criss_cross"}),
            ["layer1_0/context/criss_cross/0", "layer1_0/context/criss_cross/1"],
        ),
        (RESNET((2,), attention=SE | {"share": True}), ["layer1_0/se", "layer1_1/se"]),
        (RESNET((2,), attention={"name": "dia", "share": True}), ["layer1_0/dia", "layer1_1/dia"]),
        (RESNET((1,), attention=Own), ["layer1_0/Own"]),
        (
            VGG((1, 1, 1, 1, 2), width=2, hidden_features=4, attention=SE | {"stages": 5}),
            ["se5_1/se", "se5_2/se"],
        ),
        (create_attention("coordinate"), ["coordinate/height", "coordinate/width"]),
        (Inner(), ["SqueezeExcite_0/se", "Inner/whole", "Inner/first", "last/eca"]),
        (
            create_segmenter("lraspp_resnet10", 3, "danet_position", backbone={"width": 8}),
            ["neck/self_attention", "classifier"],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value[0],
)
def test_names(model, names):
    assert shapes_of(model).keys() == set(names)


@pytest.mark.parametrize(
    ("share", "names"),
    [
        (False, ["attention_blocks_0/se", "attention_blocks_1/se"]),
        (True, ["attention_block/se/0", "attention_block/se/1"]),
    ],
)
def test_names_at_the_levels_of_a_pyramid(share, names):
    body = {"name": "resnet10", "width": 8}
    fields = {"body": body, "taps": ((3, -1), (4, -1)), "features": 8}
    fields["proposals"] = {"anchor_sizes": ((32,), (64,), (128,))}
    attention = SE | {"position": "post", "share": share}
    model = create_detector("fasterrcnn_resnet50_fpn", 3, attention, **fields)
    assert shapes_of(model).keys() == {f"backbone/fpn/{name}" for name in names}


@pytest.fixture(scope="module")
def shared():
    model = ResNet((2,), width=8, num_classes=3, attention=SE | {"share": True})
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    return model, initialise(model, jax.random.key(0), images.shape), images


def test_looking_changes_nothing_and_finds_what_is_sown(shared):
    model, variables, images = shared
    plain = jax.jit(model.apply)(variables, images)
    recording = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    outputs, state = recording(variables, images)
    np.testing.assert_array_equal(outputs, plain)
    maps = jax.jit(functools.partial(attention_maps, model))(variables, images)
    sown = state["intermediates"]["layer1_se"]["attention"]
    assert list(maps) == ["layer1_0/se", "layer1_1/se"]
    assert jnp.abs(sown[0] - sown[1]).max() > 1e-4
    for found, expected in zip(maps.values(), sown, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_not_asked_for_is_not_in_the_program(shared, monkeypatch):
    model, variables, images = shared

    def program(**options):
        apply = functools.partial(model.apply, **options)
        return jax.jit(lambda v, x: apply(v, x)).lower(variables, images).as_text()

    off, on = program(), program(mutable=["intermediates"])
    monkeypatch.setattr(nn.Module, "sow", lambda *_, **__: False)
    assert program() == off != on


def test_maps_of_an_initialisation_are_not_taken_for_the_images(shared):
    model, variables, images = shared
    stale = variables | {"intermediates": {"layer1_se": {"attention": (jnp.zeros(1),)}}}
    maps = jax.eval_shape(functools.partial(attention_maps, model), stale, images)
    assert {leaf.shape for leaf in maps.values()} == {(2, 32)}


def test_a_network_without_attention_is_refused():
    with pytest.raises(InputError, match="no layer of this ResNet sows its attention: use a"):
        shapes_of(RESNET((1,)))


def with_one(name):
    """A network of one block with this mechanism, or the mechanism alone if it is a head."""
    layer = layer_of(ATTENTION[name])
    if layer.role == "head":
        fields = dict.fromkeys(required_fields(layer), 32)
        return create_attention(name, **fields), (2, 8, 4, 8)
    slot = "conv" if layer.role == "convolution" else "attention"
    model = ResNet((1,), width=128, num_classes=3, stem="small", **{slot: name})
    return model, (2, 56, 56, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_every_mechanism_shows_its_maps_under_its_name(name):
    model, shape = with_one(name)
    maps = shapes_of(model, shape)
    layer = layer_of(ATTENTION[name])
    own = [known for known in ATTENTION if layer_of(ATTENTION[known]) is layer]
    assert maps
    for path, found in maps.items():
        assert set(path.split("/")) & set(own), path
        assert found[0] == 2, path

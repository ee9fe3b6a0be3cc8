"""Wrong values for every public constructor: it works, or raises one short sentence."""

import contextlib
import dataclasses
import functools
import inspect
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from flaxattn import (
    ATTENTION,
    BatchNorm,
    Conv,
    InputError,
    create_attention,
    create_model,
    graft,
    initialise,
)
from flaxattn.__main__ import main
from flaxattn.attention import SharedAttention, SqueezeExcite
from flaxattn.attention.mechanism import layer_of, required_fields
from flaxattn.data.transforms import eval_transform, train_transform
from flaxattn.images import augmentation, geometry
from flaxattn.images.decoding import decode
from flaxattn.images.preprocessing import Preprocessing, class_names, normalise
from flaxattn.layers.norm import GroupNorm, LayerNorm
from flaxattn.models.placement import Placement
from flaxattn.train.config import base_config, require_valid
from flaxattn.train.optimizer import learning_rate, make_optimizer
from flaxattn.train.workdir import flat_fields
from tests.attention.examples import fields as example_fields

# Dimensions beyond 32 bits are counted, not allocated.
pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")

HUGE = 10**9
NUMBERS = [-1, 0, 1, 2, 3, HUGE, -0.5, 2.5, 1e9, math.nan, math.inf, np.float32(3)]
SEQUENCES = [(), (3,), (3, 5), [0, 0], (-1, HUGE), ("a", "b"), (1, 2, 3, 4, 5), (None,)]
THING = type("Thing", (), {"__repr__": lambda _: "<thing>"})()  # the same name in every process
OTHERS = [None, True, False, "", "16", "se", b"x", {"a": {"b": 1}}, THING, np.arange(2)]
WRONG = [*NUMBERS, *SEQUENCES, *OTHERS]
wrong = st.sampled_from(WRONG)

KEY = jax.eval_shape(lambda: jax.random.key(0))
MAP = jax.ShapeDtypeStruct((2, 4, 8, 32), jnp.float32)
IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


# How many examples, the same ones each time: few in the everyday tests, many among the slow ones.
examples = pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])


def repeat(count, check):
    """`check` of so many draws of hypothesis's data."""
    settings(max_examples=count, derandomize=True, database=None)(given(st.data())(check))()


def sentence_or_fine(run):
    """The error, if there is one: a sentence short enough to read."""
    try:
        run()
    except InputError as error:
        message = str(error)
        assert len(message) <= 600
        assert "\n" not in message
        assert message.endswith((".", "?"))
        return message
    return None


def own_fields(layer):
    return [f.name for f in dataclasses.fields(layer) if f.name not in ("parent", "name")]


def traced(layer, x, *train):
    """The layer, initialised and applied in the abstract."""

    def run(key, x):
        variables = layer.init(key, x)
        rngs = {"dropout": key}
        return layer.apply(variables, x, *train, mutable=["batch_stats"], rngs=rngs)

    return jax.eval_shape(run, KEY, x)


MECHANISMS = list(dict.fromkeys(layer_of(make) for make in ATTENTION.values()))
LAYERS = {Conv: {"features": 4}, BatchNorm: {}, GroupNorm: {"num_groups": 4}, LayerNorm: {}}
# One small network of each family.
NETWORKS = {
    "resnet18": {"stage_sizes": (1, 1)},
    "resnet50": {"stage_sizes": (1,)},
    "legacy_seresnet18": {"stage_sizes": (1, 1)},
    "regnety_002": {"depth": 4},
    "vgg11_bn": {},
    "efficientnet_b0": {"stages": [[("inverted", 16, 3, 2)]]},
}


REQUIRED = {"stage_sizes": (1, 1, 1, 1, 1), "stages": [[("conv", 8)]]}


def network_class(name):
    return type(create_model(name))


@pytest.mark.parametrize(
    "layer",
    [*MECHANISMS, *LAYERS, *dict.fromkeys(map(network_class, NETWORKS))],
    ids=lambda layer: layer.__name__,
)
def test_every_field_says_what_it_takes(layer):
    """Its annotation is read, and nothing takes whatever it is given."""
    required = {name: REQUIRED.get(name, 8) for name in required_fields(layer)}
    for field in own_fields(layer):
        with pytest.raises(InputError, match=rf"{field}=<thing> must be "):
            layer(**required | {field: THING})


@examples
@pytest.mark.parametrize("name", ATTENTION)
def test_mechanisms(name, count):
    variants = [None, *layer_of(ATTENTION[name]).variants] if name not in VARIANTS else [None]

    def check(data):
        variant = data.draw(st.sampled_from(variants), "variant")
        field = data.draw(st.sampled_from(own_fields(layer_of(ATTENTION[name]))), "field")
        given = example_fields(name, variant) | {field: data.draw(wrong, "value")}
        sentence_or_fine(
            lambda: traced(create_attention(name, variant=variant, **given), MAP, True)
        )

    repeat(count, check)


VARIANTS = {name for name, make in ATTENTION.items() if make is not layer_of(make)}


@examples
def test_names(count):
    def check(data):
        name, variant = data.draw(wrong), data.draw(wrong)
        assert variant is None or sentence_or_fine(lambda: create_attention("se", variant=variant))
        assert sentence_or_fine(lambda: create_attention("se", **{str(name): variant}))
        assert sentence_or_fine(lambda: create_attention(name)) or str(name) == "se"
        assert sentence_or_fine(lambda: create_model(name))

    repeat(count, check)


@examples
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_layers(layer, count):
    def check(data):
        field = data.draw(st.sampled_from(own_fields(layer)), "field")
        given = LAYERS[layer] | {field: data.draw(wrong, "value")}
        train = (True,) if layer in (BatchNorm, GroupNorm) else ()
        sentence_or_fine(lambda: traced(layer(**given), MAP, *train))

    repeat(count, check)


@examples
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, count):
    def check(data):
        field = data.draw(st.sampled_from(own_fields(network_class(name))), "field")
        given = NETWORKS[name] | {field: data.draw(wrong, "value")}
        sentence_or_fine(lambda: traced(create_model(name, **given), IMAGES, True))

    repeat(count, check)


@examples
@pytest.mark.parametrize("name", NETWORKS)
def test_placements(name, count):
    """Which need no trace: a placement is checked when the network is made."""
    slots = {"attention": "se", "conv": "sk", "context": "global_context"}
    fields = [f.name for f in dataclasses.fields(Placement)]

    def check(data):
        slot, value = data.draw(st.sampled_from(list(slots)), "slot"), data.draw(wrong, "value")
        field = data.draw(st.sampled_from([*fields, "name", "variant", "reduction", "a"]), "field")
        small, place = NETWORKS[name], {"name": slots[slot], field: value}
        sentence_or_fine(lambda: create_model(name, **small, **{slot: place}))
        if field in fields:
            sentence_or_fine(
                lambda: create_model(
                    name, **small, **{slot: Placement(**{"factory": SqueezeExcite, field: value})}
                )
            )

    repeat(count, check)


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_what_is_no_map(value):
    images = create_model("resnet10")
    key = jax.random.key(0)
    for make in (images.init, SqueezeExcite().init, Conv(3).init, BatchNorm().init):
        assert sentence_or_fine(functools.partial(make, key, value))
    assert sentence_or_fine(lambda: SharedAttention(SqueezeExcite).init(key, value))
    if not callable(value):
        assert sentence_or_fine(lambda: SharedAttention(value))


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_what_has_no_variables(value):
    key, layer = jax.random.key(0), SqueezeExcite()
    model = create_model("resnet10")
    for make in (
        lambda: initialise(value, key, (1, 4, 4, 32)),
        lambda: initialise(layer, value, (1, 4, 4, 32)),
        lambda: initialise(layer, key, value),
        lambda: graft(value, {}, attention="se"),
        lambda: graft(model, value, attention="se", input_shape=(1, 32, 32, 3)),
    ):
        assert sentence_or_fine(make)


PICTURE = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
PIXELS = np.zeros((12, 16, 3), np.uint8)
RNG = np.random.default_rng(0)


@examples
def test_preprocessing(count):
    def check(data):
        field, value = data.draw(st.sampled_from(Preprocessing._fields)), data.draw(wrong)
        small = {"input_size": (24, 24, 3)} | {field: value}
        config = {"input_size": (3, 24, 24)} | {field: value}
        sentence_or_fine(lambda: Preprocessing(**small)(PICTURE))
        sentence_or_fine(lambda: Preprocessing.of(config)(PICTURE))
        sentence_or_fine(lambda: Preprocessing.of({"pretrained_cfg": config})(PICTURE))
        sentence_or_fine(lambda: Preprocessing.of({"pretrained_cfg": value}))
        sentence_or_fine(lambda: class_names({"label_names": value}))
        sentence_or_fine(lambda: class_names({"label_names": [], "label_descriptions": value}))
        assert sentence_or_fine(lambda: Preprocessing()(value))
        assert sentence_or_fine(lambda: Preprocessing.of(value)) or isinstance(value, dict)

    repeat(count, check)


OF_IMAGES = {
    geometry.resize: {"height": 4, "width": 4, "interpolation": "box"},
    geometry.resize_shorter_side: {"size": 4},
    geometry.center_crop: {"height": 4, "width": 4, "fill": 0},
    geometry.squash: {"size": 4},
    geometry.random_resized_crop: {"size": 4, "scale": (0.1, 1), "ratio": (0.75, 1.3)},
    geometry.padded_crop: {"size": 4, "padding": 1},
    geometry.horizontal_flip: {"probability": 0.5},
    augmentation.random_erasing: {"probability": 0.5},
    augmentation.rand_augment: {"num_ops": 1, "magnitude": 9},
    normalise: {"mean": (0, 0, 0), "std": (1, 1, 1)},
    decode: {"channels": 3},
}


@examples
@pytest.mark.parametrize("function", OF_IMAGES, ids=lambda function: function.__name__)
def test_images(function, count):
    rng = (RNG,) if "rng" in inspect.signature(function).parameters else ()

    def check(data):
        arguments, value = OF_IMAGES[function], data.draw(wrong, "value")
        name = data.draw(st.sampled_from(list(arguments)), "argument")
        image = PICTURE if function is decode else PIXELS
        sentence_or_fine(lambda: function(image, *rng, **arguments | {name: value}))
        sentence_or_fine(lambda: function(value, *rng, **arguments))

    repeat(count, check)


def changed(fields, name, value):
    """A copy of nested fields with another value under a dotted name."""
    first, _, rest = name.partition(".")
    return fields | {first: changed(fields[first], rest, value) if rest else value}


def record():
    file = io.BytesIO()
    PICTURE.save(file, format="PNG")
    return {"image": file.getvalue(), "label": 0, "name": "picture"}


@examples
def test_transforms(count):
    usual = base_config().data.to_dict() | {"image_size": 8, "eval_resize": 9}
    used = ["image_size", "channels", "mean", "std", "eval_resize", "augment"]
    names = [*used, *(f"augment.{name}" for name in usual["augment"])]

    def check(data):
        name, value = data.draw(st.sampled_from(names), "field"), data.draw(wrong, "value")
        config = changed(usual, name, value)
        sentence_or_fine(lambda: train_transform(config)(record(), RNG))
        sentence_or_fine(lambda: eval_transform(config)(record()))

    repeat(count, check)


@examples
def test_configs(count):
    usual = base_config().to_dict()
    names = [name for name in flat_fields(usual) if not name.startswith("model.")]

    def check(data):
        name = data.draw(st.sampled_from([*names, "data", "optim", "model", "other"]), "field")
        config = ConfigDict(changed(usual, name, data.draw(wrong, "value")), type_safe=False)

        def run():
            require_valid(config)
            steps = max(round(config.epochs * 10), 1)
            schedule = learning_rate(config.optim, steps_per_epoch=10, total_steps=steps)
            make_optimizer(config.optim, schedule).init({"kernel": jnp.ones(2)})

        sentence_or_fine(run)

    repeat(count, check)


TEXTS = [
    *["", "0", "-1", "nan", "None", "1e9", "1000000000", "se", "resnet", "[1", "'", "\0", "1" * 99],
    *["name=", "=", "name=se,", "name=se,stages=9", "name=se,blocks=a+b", "name=se,name=eca"],
    *["name=se,reduction=x", "name=se,reduction=0", "name=se,reduction=1+2", "name=sk"],
    *["name=se,share=3", "name=se,variant=x", "name=se,dtype=int8", "name=se,activation=relu"],
]
COMMANDS = [
    ["list", "--models"],
    ["list"],
    ["describe"],
    ["describe", "strip", "--features"],
    ["describe", "strip", "--size"],
    ["describe", "strip", "--attention"],
    ["describe", "resnet10", "--size"],
    ["describe", "resnet10", "--size", "32", "--attention"],
    ["describe", "resnet10", "--size", "32", "--conv"],
    ["describe", "resnet10", "--size", "32", "--context"],
    [],
]


@examples
def test_commands(count):
    """Success, or a sentence or argparse's usage with exit status 2."""

    def check(data):
        command = [*data.draw(st.sampled_from(COMMANDS)), data.draw(st.sampled_from(TEXTS))]
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                status = main(command)
            except SystemExit as left:
                status = left.code
        assert status == (0 if out.getvalue() else 2)
        assert len(error.getvalue()) <= 600

    repeat(count, check)

"""VGG against torchvision's and timm's, and attention after its convolutions."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn import InputError, create_attention, create_model, weights
from flaxattn.attention import EfficientChannel, SelectiveKernel
from flaxattn.models import Placement
from flaxattn.models.vgg import VGG, VGGS
from tests.attention import parity
from tests.models.networks import X, check_logits, check_names, load_and_back, shapes_of
from tests.models.test_resnet import LOGITS, check, images
from tests.torch_reference.dual_attention import DualAttention
from tests.torch_reference.torchvision_shim import timm, torchvision

SIZES = {"small": (1, 1, 1, 1, 2), "16": (2, 2, 3, 3, 3)}
HEADS = {"torchvision": "fixed", "timm": "sliding"}
# torchvision's and timm's words for a small network.
WORDS = [8, "M", 16, "M", 32, "M", 64, "M", 64, 64, "M"]


def references(name):
    return {"torchvision": torchvision.models.get_model(name), "timm": timm.create_model(name)}


@pytest.mark.parametrize("name", VGGS)
def test_names_shapes_and_counts_are_the_references(name):
    model = create_model(name)
    with torch.device("meta"):
        found = references(name)
    check_names(model, shapes_of(model), found)


def small(naming, batch_norm, pool="avg"):
    """A small network and its reference."""
    if naming == "torchvision":
        layers = torchvision.models.vgg.make_layers(WORDS, batch_norm=batch_norm)
        reference = torchvision.models.VGG(layers, num_classes=5, init_weights=False, dropout=0.0)
        reference.classifier[0] = torch.nn.Linear(64 * 49, 24)
        reference.classifier[3] = torch.nn.Linear(24, 24)
        reference.classifier[6] = torch.nn.Linear(24, 5)
    else:
        norm = torch.nn.BatchNorm2d if batch_norm else None
        fields = {"mlp_ratio": 24 / 4096, "norm_layer": norm, "global_pool": pool}
        reference = timm.models.vgg.VGG(WORDS, num_classes=5, **fields)
        reference.pre_logits.fc2 = torch.nn.Conv2d(24, 24, 1)
        reference.head.fc = torch.nn.Linear(48 if pool == "catavgmax" else 24, 5)
    model = VGG(
        SIZES["small"],
        batch_norm,
        num_classes=5,
        head=HEADS[naming],
        global_pool=pool,
        width=8,
        hidden_features=24,
        dropout=0.0,
    )
    return model, reference


@pytest.mark.parametrize(
    ("naming", "batch_norm", "size", "dtype"),
    [
        ("torchvision", True, (64, 97), "float64"),
        ("torchvision", True, (225, 287), "float32"),
        ("timm", True, (64, 97), "float32"),
        ("timm", True, (287, 101), "float64"),
    ],
)
def test_small_networks_are_the_references(naming, batch_norm, size, dtype, record_property):
    model, reference = small(naming, batch_norm)
    name = f"small vgg, {naming}'s head"
    check(record_property, name, model, reference, size=size, dtype=dtype, naming=naming)


@pytest.mark.parametrize("pool", ["max", "avgmax", "catavgmax"])
def test_global_pools_are_timms(pool, record_property):
    model, reference = small("timm", False, pool)
    name = f"small vgg, {pool}"
    check(record_property, name, model, reference, size=(257, 290), dtype="float64", naming="timm")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("size", [(224, 224), (65, 257)], ids=str)
@pytest.mark.parametrize("name", VGGS)
def test_logits_are_the_references(name, size, dtype, record_property):
    for naming, reference in references(name).items():
        model = create_model(name, head=HEADS[naming])
        check_logits(record_property, name, model, reference, size=size, dtype=dtype, naming=naming)


@pytest.mark.parametrize(("naming", "batch_norm"), [("torchvision", False), ("timm", True)])
def test_weights_go_there_and_back_bit_for_bit_and_the_naming_is_found(naming, batch_norm):
    model, reference = small(naming, batch_norm)
    found = load_and_back(model, reference, (1, 32, 32, 3), naming)
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    by_itself = weights.load(model, state, (1, 32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, by_itself, found)


def test_a_matrix_of_another_width_is_misshapen():
    model, reference = small("torchvision", False)
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    state["classifier.0.weight"] = state["classifier.0.weight"].T
    with pytest.raises(InputError, match=r"misshapen: classifier\.0\.weight \(3136, 24\)"):
        weights.load(model, state, (1, 32, 32, 3), "torchvision")


def test_features_are_the_maps_before_the_pools_and_after_the_last():
    model, _ = small("timm", True)
    x = jax.ShapeDtypeStruct((2, 65, 97, 1), jnp.float32)
    maps = jax.eval_shape(functools.partial(model.apply, method="features"), shapes_of(model, x), x)
    assert [m.shape for m in maps] == [
        (2, 65 // stride, 97 // stride, channels)
        for channels, stride in zip(model.feature_channels, model.feature_strides, strict=True)
    ]


def test_dtypes_and_no_classes():
    model, _ = small("timm", True)
    model = model.clone(dtype=jnp.bfloat16, num_classes=0)
    variables = shapes_of(model)
    assert "fc8" not in variables["params"]
    answer = jax.eval_shape(model.apply, variables, X)
    assert (answer.shape, answer.dtype) == ((2, 24), jnp.float32)
    maps = jax.eval_shape(functools.partial(model.apply, method="features"), variables, X)
    assert {m.dtype for m in maps} == {jnp.dtype("bfloat16")}


def test_dropout_acts_after_both_hidden_layers_in_train_mode_only():
    model = VGG((1, 1, 1, 1, 1), width=1, hidden_features=512, num_classes=0, dropout=0.5)
    x = jnp.ones((1, 32, 32, 3))
    shapes = shapes_of(model)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape) / 100, shapes)

    @jax.jit
    def run(key):
        rngs = {"dropout": key}
        full = model.clone(num_classes=3)
        head = {"fc8": {"kernel": jnp.ones((512, 3)), "bias": jnp.ones(3)}}
        params = {"params": variables["params"] | head}
        _, calls = full.apply(params, x, train=True, rngs=rngs, capture_intermediates=True)
        return calls["intermediates"]["drop"]["__call__"]

    first, second = run(jax.random.key(0))
    for dropped in (first, second):
        assert 0.35 < float(jnp.mean(dropped == 0)) < 0.65
    assert not np.array_equal(first.reshape(-1) == 0, second.reshape(-1) == 0)
    jax.eval_shape(model.apply, variables, x)  # eval mode needs no rng


def attention_in(model):
    return {name for name in shapes_of(model)["params"] if name.startswith("se")}


LAST = {"se1_2", "se2_2", "se3_3", "se4_3", "se5_3"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"after": "conv5_3"}, ["se5_3"]),
        ({"after": ("conv5_2",)}, ["se5_2"]),
        ({"after": ["conv1_1", "conv4_3"]}, ["se1_1", "se4_3"]),
        ({"blocks": "last"}, sorted(LAST)),
        ({"stages": (4, 5), "blocks": (0, 2)}, ["se4_1", "se4_3", "se5_1", "se5_3"]),
        ({"stages": 3}, ["se3_1", "se3_2", "se3_3"]),
        ({"stages": (4, 5), "share": True}, ["se4", "se5"]),
    ],
    ids=str,
)
def test_attention_stands_after_the_convolutions_named(fields, expected):
    model = VGG(SIZES["16"], width=4, hidden_features=4, attention={"name": "eca", **fields})
    assert attention_in(model) == set(expected)


def test_attention_may_be_a_name_or_a_class():
    for value in ("eca", EfficientChannel):
        model = VGG((1, 1, 1, 1, 1), width=4, hidden_features=4, attention=value)
        assert attention_in(model) == {f"se{stage}_1" for stage in range(1, 6)}


class Probe(nn.Module):
    """Triples its input, and sows what it saw."""

    role: ClassVar[str] = "recalibrate"

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("intermediates", "seen", x)
        return 3 * x


def test_attention_sees_what_the_relu_answers_and_the_next_layer_its_answer():
    model = VGG(
        (2, 1, 1, 1, 1),
        batch_norm=True,
        width=2,
        hidden_features=4,
        attention=Placement(Probe, stages=1, blocks=0),
    )
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 1, leaf.shape), leaf.dtype), shapes_of(model)
    )
    _, moved = jax.jit(
        functools.partial(
            model.apply, method="features", mutable=["intermediates"], capture_intermediates=True
        )
    )(variables, x)
    inner = moved["intermediates"]
    (seen,) = inner["se1_1"]["seen"]
    np.testing.assert_allclose(seen, jax.nn.relu(inner["bn1_1"]["__call__"][0]), rtol=1e-5)
    conv1_2 = model.clone(attention=None).bind(variables).conv1_2
    np.testing.assert_allclose(inner["conv1_2"]["__call__"][0], conv1_2(3 * seen), rtol=1e-5)


@pytest.mark.parametrize(
    ("after", "index"), [("conv5_2", 28), ("conv5_3", 30)], ids=["as-written", "as-meant"]
)
def test_the_articles_vgg16_loads(after, index, record_property):
    """Article 3 splits torchvision's Sequential at 28, which is before conv5_3; 30 is after."""
    rng = np.random.default_rng(0)
    words = [v // 8 if v != "M" else v for v in torchvision.models.vgg.cfgs["D"]]
    layers = list(torchvision.models.vgg.make_layers(words))
    reference = torchvision.models.VGG(torch.nn.Sequential(*layers), init_weights=False)
    reference.features = torch.nn.Sequential(*layers[:index], DualAttention(64), *layers[index:])
    reference.classifier = torch.nn.Sequential(
        *(torch.nn.Linear(64 * 49, 16), torch.nn.ReLU(), torch.nn.Dropout()),
        *(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Dropout()),
        torch.nn.Linear(16, 7),
    )
    parity.randomise(reference, rng)
    model = VGG(
        SIZES["16"],
        width=8,
        hidden_features=16,
        num_classes=7,
        attention={"name": "sca", "after": after},
    )
    row = f"article's vgg16, {after}"
    check_logits(
        record_property,
        row,
        model,
        reference,
        size=(33, 40),
        dtype="float32",
        naming="articles",
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention": {"name": "se", "after": "conv5_4"}}, "convolution 'conv5_4': did you mean"),
        ({"attention": {"name": "se", "after": "pool5"}}, "unknown convolution 'pool5'.*conv1_1, "),
        ({"attention": {"name": "se", "after": ()}}, r"after=\(\) places nothing"),
        (
            {"attention": {"name": "se", "after": "conv5_3", "stages": 5}},
            "name the convolutions, or their stages and blocks",
        ),
        ({"attention": {"name": "se", "position": "mid"}}, "unknown position 'mid'"),
        ({"attention": SelectiveKernel}, "sk replaces a convolution"),
        ({"attention": create_attention("se")}, "one layer whose weights all blocks would share"),
        ({"stage_sizes": (1, 1)}, "use five numbers of convolutions"),
        ({"head": "linear"}, "unknown head 'linear'.*fixed, sliding"),
        ({"global_pool": "mean"}, "unknown global_pool 'mean'"),
        ({"hidden_features": 0}, "hidden_features=0 is below 1"),
        ({"dropout": 1}, "dropout=1 must be 0 or more"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        VGG(**{"stage_sizes": SIZES["16"], **fields})


def test_images_below_32_pixels_are_refused():
    model, _ = small("timm", False)
    x = jax.ShapeDtypeStruct((1, 64, 31, 3), jnp.float32)
    with pytest.raises(InputError, match="images of 64x31 pixels leave nothing after five max"):
        shapes_of(model, x)


def test_the_same_logits_from_both_heads_at_seven_by_seven():
    fixed, reference = small("torchvision", False)
    parity.randomise(reference, np.random.default_rng(0))
    state = {key: tensor.detach().numpy() for key, tensor in reference.state_dict().items()}
    x = images((224, 230), batch=1).astype("float32")
    variables = weights.load(fixed, state, x.shape)
    one, other = (
        jax.jit(fixed.clone(head=head).apply)(variables, x) for head in ("fixed", "sliding")
    )
    np.testing.assert_array_equal(one, other)

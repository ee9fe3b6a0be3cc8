"""ResNets against torchvision's and timm's: logits, statistics, training, parameter counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from flaxattn import BatchNorm, InputError, create_model, weights
from flaxattn.models import BasicBlock, Bottleneck, ResNet
from tests.attention import parity
from tests.torch_reference.torchvision_shim import timm, torchvision

# DESIGN.md, "Truth", for whole networks; statistics as for layers.
LOGITS = {"float32": 1e-4, "float64": 1e-9}
STATISTICS = {"float32": 1e-5, "float64": 1e-10}


def images(size, *, batch=2, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, *size, 3))


def init(model, x):
    return jax.jit(model.init)(jax.random.key(0), x)


def check(record_property, name, model, reference, *, size, dtype, naming=None):
    """Logits in eval and in train mode, and the running statistics after the latter."""
    parity.randomise(reference, np.random.default_rng(0))
    reference = reference.to(getattr(torch, dtype))
    x = images(size)
    x_torch = torch.tensor(parity.to_channels_first(x), dtype=getattr(torch, dtype))
    with jax.enable_x64(dtype == "float64"):
        model = model.clone(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))

        def load():
            state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
            return weights.load(model, state, x.shape, naming)

        variables = load()

        @jax.jit
        def run(variables, x):
            logits = model.apply(variables, x)
            return logits, model.apply(variables, x, train=True, mutable=["batch_stats"])

        logits, (train_logits, moved) = run(variables, jnp.asarray(x, dtype))
        assert logits.dtype == dtype
        with torch.no_grad():
            expected = reference.eval()(x_torch).numpy()
            expected_train = reference.train()(x_torch).numpy()
        statistics = load().get("batch_stats", {})
        moved = moved.get("batch_stats", {})
        pairs = zip(*map(jax.tree.leaves, (moved, statistics)), strict=True)
        errors = {
            "logits": parity.difference(logits, expected),
            "train logits": parity.difference(train_logits, expected_train),
            "statistics": max((parity.difference(*pair) for pair in pairs), default=0.0),
        }
    for quantity, error in errors.items():
        bound = (STATISTICS if quantity == "statistics" else LOGITS)[dtype]
        record_property("parity", (name, f"{quantity} {dtype}", error, bound))
        assert error <= bound, f"{name}: {quantity} differ by {error:.1e}"


@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("size", [(64, 64), (65, 49)], ids=str)
def test_resnet18_is_torchvisions(size, dtype, record_property):
    reference = torchvision.models.resnet18()
    check(record_property, "resnet18", create_model("resnet18"), reference, size=size, dtype=dtype)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [pytest.param((64, 64), "float32", marks=pytest.mark.slow), ((65, 49), "float64")],
    ids=str,
)
def test_resnet50_is_torchvisions(size, dtype, record_property):
    reference = torchvision.models.resnet50()
    check(record_property, "resnet50", create_model("resnet50"), reference, size=size, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    [
        ("resnet18", (65, 49), "float32"),
        ("resnet18", (65, 49), "float64"),
        pytest.param("resnet50", (64, 64), "float64", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_seresnet_is_timms(name, size, dtype, record_property):
    model = create_model(name, attention={"name": "se", "variant": "timm"})
    reference = timm.create_model(f"se{name}")
    check(record_property, f"se{name}", model, reference, size=size, dtype=dtype, naming="timm")


@pytest.mark.parametrize("attention", ["eca", "cbam"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_attention_stands_where_timm_has_it(block, attention, record_property):
    blocks = {"basic": timm.models.resnet.BasicBlock, "bottleneck": timm.models.resnet.Bottleneck}
    check(
        record_property,
        f"resnet10 {block} {attention}",
        create_model("resnet10", block=block, attention={"name": attention, "variant": "timm"}),
        timm.models.resnet.ResNet(
            blocks[block], (1, 1, 1, 1), block_args={"attn_layer": attention}
        ),
        size=(64, 64),
        dtype="float64",
        naming="timm",
    )


def test_small_stem_keeps_the_size(record_property):
    reference = torchvision.models.resnet18(num_classes=10)
    reference.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = torch.nn.Identity()
    model = create_model("resnet18", num_classes=10, stem="small")
    name = "resnet18 small stem"
    check(record_property, name, model, reference, size=(16, 13), dtype="float32")


@pytest.mark.slow
def test_ten_steps_follow_torchs_losses_and_statistics():
    """From timm's initial weights: from `randomise`'s, torch's own float32 statistics are 6e-3 off.

    (That far from its float64 ones, after ten steps at a rate of 0.01; from these, 5e-6 at 0.1.)
    """
    torch.manual_seed(0)
    reference = timm.create_model("seresnet18", num_classes=10).train()
    model = create_model("seresnet18", num_classes=10)
    batches = np.stack([images((64, 64), batch=8, seed=i) for i in range(10)]).astype("float32")
    labels = np.random.default_rng(0).integers(10, size=(10, 8))
    state = {key: tensor.numpy().copy() for key, tensor in reference.state_dict().items()}
    variables = jax.tree.map(jnp.asarray, weights.load(model, state, batches[0].shape))
    start = variables["batch_stats"]

    optimiser = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    expected = []
    for x, y in zip(batches, labels, strict=True):
        logits = reference(torch.tensor(parity.to_channels_first(x)))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        expected.append(loss.item())

    sgd = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(variables, momentum, x, y):
        def loss(params):
            logits, moved = model.apply(
                variables | {"params": params}, x, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), moved

        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, momentum = sgd.update(gradients, momentum)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **moved}, momentum, value

    momentum = sgd.init(variables["params"])
    losses = []
    for x, y in zip(batches, labels, strict=True):
        variables, momentum, value = step(variables, momentum, x, y)
        losses.append(float(value))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(losses, expected, rtol=1e-3)

    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    theirs = weights.load(model, state, batches[0].shape)["batch_stats"]
    for first, ours, expected in zip(
        *map(jax.tree.leaves, (start, variables["batch_stats"], theirs)), strict=True
    ):
        assert not np.array_equal(first, expected)
        assert parity.difference(ours, expected) <= 1e-3


def parameter_count(model):
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("name", "attention", "count"),
    [
        ("resnet18", None, 11_689_512),
        ("resnet34", None, 21_797_672),
        ("resnet50", None, 25_557_032),
        ("resnet101", None, 44_549_160),
        ("resnet152", None, 60_192_808),
        # timm's variants in every block, as its attention ResNet-50s have been counted.
        ("resnet50", {"name": "se", "variant": "timm"}, 28_088_024),
        ("resnet50", {"name": "ese", "variant": "timm"}, 45_691_688),
        ("resnet50", {"name": "eca", "variant": "timm"}, 25_557_118),
        ("resnet50", {"name": "global_context", "variant": "timm"}, 30_622_808),
        ("resnet50", {"name": "cbam", "variant": "timm"}, 28_073_576),
        ("resnet50", {"name": "coordinate", "variant": "timm"}, 28_083_464),
        ("resnet50", {"name": "ela", "variant": "timm"}, 25_828_904),
        ("resnet50", {"name": "strip", "variant": "timm"}, 25_647_656),
        ("resnet50", {"name": "non_local", "variant": "timm"}, 35_667_784),
        ("resnet50", {"name": "bat", "variant": "timm"}, 36_974_248),
    ],
)
def test_parameter_count_is_the_published_one(name, attention, count):
    assert parameter_count(create_model(name, attention=attention)) == count


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_have_the_stated_channels_and_strides(name, stem):
    model = create_model(name, stem=stem)
    x = jax.ShapeDtypeStruct((2, 65, 96, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    maps = jax.eval_shape(functools.partial(model.apply, method="features"), variables, x)
    assert [m.shape for m in maps] == [
        (2, -(-65 // stride), -(-96 // stride), channels)
        for channels, stride in zip(model.feature_channels, model.feature_strides, strict=True)
    ]
    assert model.feature_strides == ((2, 4, 8, 16, 32) if stem == "imagenet" else (1, 2, 4, 8))


def test_features_are_what_the_logits_come_from():
    model = create_model("resnet10", num_classes=0, width=8)
    x = jnp.asarray(images((33, 64)), jnp.float32)
    variables = init(model, x)
    assert "fc" not in variables["params"]
    last = model.apply(variables, x, method="features")[-1]
    np.testing.assert_array_equal(model.apply(variables, x), jnp.mean(last, axis=(1, 2)))


def test_bfloat16_computes_narrow_and_answers_float32():
    model = create_model("resnet10", num_classes=5, width=16, dtype=jnp.bfloat16, attention="se")
    x = jnp.asarray(images((64, 64)), jnp.float32)
    variables = init(model, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    maps = jax.eval_shape(functools.partial(model.apply, method="features"), variables, x)
    assert {m.dtype for m in maps} == {jnp.dtype("bfloat16")}
    logits = jax.jit(model.apply)(variables, x)
    assert logits.dtype == jnp.float32
    wide = jax.jit(model.clone(dtype=None).apply)(variables, x)
    assert 0 < parity.difference(logits, wide) < 0.05


def test_initial_kernels_are_torchvisions():
    model = create_model("resnet10", width=32)
    params = init(model, jnp.zeros((1, 64, 64, 3)))["params"]
    kernel = params["layer4_0"]["conv2"]["kernel"]
    assert np.std(kernel) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    fc = params["fc"]["kernel"]
    assert np.abs(fc).max() == pytest.approx(256**-0.5, rel=0.01)
    assert np.std(fc) == pytest.approx((3 * 256) ** -0.5, rel=0.01)


def test_norm_is_one_factory_for_all_blocks():
    made = []

    def norm(**fields):
        made.append(fields.get("name", "stem"))
        return BatchNorm(**fields)

    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    model = ResNet((1, 1), "basic", width=4, norm=norm)
    jax.eval_shape(model.init, jax.random.key(0), x)
    assert made == ["stem", "bn1", "bn2", "bn1", "bn2", "downsample_1"]


def test_block_may_be_a_class():
    for name, block in {"basic": BasicBlock, "bottleneck": Bottleneck}.items():
        by_name, by_class = (ResNet((1, 1), b, width=4) for b in (name, block))
        assert parameter_count(by_name) == parameter_count(by_class)


@pytest.mark.parametrize(
    ("images", "param_dtype", "promotion", "expected"),
    [
        ("float64", "float32", "standard", "float64"),
        ("float64", "float64", "strict", "float64"),
        ("bfloat16", "bfloat16", "strict", "float32"),
    ],
)
def test_logits_are_as_wide_as_the_images_and_float32_at_least(
    images, param_dtype, promotion, expected
):
    model = ResNet((1,), "basic", width=4, num_classes=3, param_dtype=jnp.dtype(param_dtype))
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), images)
    with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    assert logits.dtype == expected
    assert variables["params"]["fc"]["kernel"].dtype == param_dtype


@pytest.mark.parametrize("stage_sizes", [(), (2, 0), (-1,)], ids=str)
def test_stages_without_blocks_are_refused(stage_sizes):
    with pytest.raises(
        InputError, match=r"stage_sizes=\(.*\) makes no network: use a number of bl"
    ):
        ResNet(stage_sizes)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"block": "bottlenek"}, "unknown block 'bottlenek': did you mean bottleneck?"),
        ({"stem": "cifar"}, "unknown stem 'cifar'.*Known: deep, imagenet, small, tiered"),
    ],
)
def test_unknown_structure_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        ResNet((1, 1), **fields)

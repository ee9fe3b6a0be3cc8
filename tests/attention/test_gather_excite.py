"""Gather-excite: parity at each extent, the map that a kernel is bound to, timm's defect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import weights
from flaxattn.attention import GatherExcite, SqueezeExcite
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import MAPS, Case, Inputs, per_sample
from tests.torch_reference import gather_excite
from tests.torch_reference.torchvision_shim import timm


def never(*_):
    return False


def one_value(extent):
    """`refuses` where the gathered maps of a batch have one position in all."""
    return lambda n, height, width: n * -(-height // extent) * -(-width // extent) == 1


# Of the layers whose convolution covers the map too, which timm would pad.
TIMMS_NAMES = GatherExcite().namings["timm"]


def conv(mlp, size, **kwargs):
    fields = {"conv": True, "mlp": mlp, "size": size, "reduction": 4, **kwargs}
    return lambda: gather_excite.GatherExcite(32, **fields)


CASES = [
    Case(
        ("gather_excite", "gather_excite.theta_minus"),
        {},
        lambda: timm.layers.GatherExcite(32, use_mlp=False),
        None,
        refuses=never,
    ),
    *[
        Case(
            (f"gather_excite.theta_minus, extent {extent}",),
            {"extent": extent},
            lambda extent=extent: timm.layers.GatherExcite(32, extent=extent, use_mlp=False),
            None,
            on=Inputs(maps=maps),
            refuses=never,
        )
        for extent, maps in ((2, ((13, 7),)), (4, ((56, 56), (13, 7), (1, 1))), (8, ((13, 7),)))
    ],
    *[
        Case(
            (f"gather_excite.{variant}, {size[0]}x{size[1]}", *rows),
            {"reduction": 4},
            conv(variant == "theta_plus", size),
            TIMMS_NAMES,
            on=Inputs(maps=(size,), refused=tuple({*MAPS} - {size})),
            # timm's layer is for maps of one size
            refuses=per_sample,
        )
        for variant, size, rows in (
            ("theta", (14, 14), ()),
            ("theta", (56, 56), ()),
            ("theta", (1, 1), ()),
            ("theta_plus", (56, 56), ()),
            ("theta_plus", (1, 1), ()),
            ("theta", (13, 7), ("gather_excite.theta",)),
            ("theta_plus", (13, 7), ("gather_excite.theta_plus",)),
        )
    ],
    *[
        Case(
            (f"gather_excite.{variant}, extent {extent}",),
            {"extent": extent, "reduction": 4},
            conv(variant == "theta_plus", None, extent=extent),
            "timm",
            on=Inputs(maps=maps),
            refuses=one_value(extent),
        )
        for variant, extent, maps in (
            ("theta", 2, ((13, 7),)),
            ("theta", 4, ((56, 56), (1, 1))),
            ("theta_plus", 8, ((13, 7),)),
        )
    ],
    Case(
        ("gather_excite.timm",),
        {"reduction": 4},
        lambda: gather_excite.GatherExcite(32, mlp=True, relu=False, reduction=4),
        "timm",
        on=Inputs(maps=((13, 7),)),
        refuses=never,
    ),
    Case(
        ("gather_excite.timm, convolutions",),
        {"gather": "conv", "extent": 4, "reduction": 4},
        conv(True, None, extent=4, relu=False, momentum=0.1),
        "timm",
        on=Inputs(maps=((13, 7),)),
        refuses=one_value(4),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 8, 6, 32))


def test_theta_minus_is_the_sigmoid_of_the_mean(x):
    answer = GatherExcite().apply({}, x)
    np.testing.assert_allclose(answer, x * jax.nn.sigmoid(x.mean((1, 2), keepdims=True)), rtol=1e-6)


def test_timms_is_squeeze_and_excitation(x):
    variables = GatherExcite.timm().init(jax.random.key(1), x)
    np.testing.assert_array_equal(
        GatherExcite.timm().apply(variables, x), SqueezeExcite().apply(variables, x)
    )


@pytest.mark.parametrize("fields", [{}, {"extra_params": True, "extent": 4, "use_mlp": False}])
def test_timm_itself_cannot_build_most_of_its_own(fields):
    """Why most references here are our own; where this fails, timm's can take their place."""
    with pytest.raises(TypeError):
        timm.layers.GatherExcite(32, **fields)


def test_a_global_kernel_weighs_every_position(x):
    """With eval statistics of 0 and 1: x * sigmoid(sum_hw k_hwc x_hwc)."""
    layer = GatherExcite.theta()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    kernel = variables["params"]["conv1"]["kernel"]
    assert kernel.shape == (8, 6, 1, 32)
    logits = (x * kernel[None, :, :, 0, :]).sum((1, 2), keepdims=True)
    np.testing.assert_allclose(
        layer.apply(variables, x), x * jax.nn.sigmoid(logits / (1 + 1e-5) ** 0.5), rtol=1e-5
    )


@pytest.mark.parametrize("variant", ["theta", "theta_plus"])
def test_a_global_kernel_is_bound_to_its_maps(x, variant):
    layer = getattr(GatherExcite, variant)()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    with pytest.raises(InputError, match=r"kernel of 8x6 cannot gather a map of 6x8: .* extent"):
        layer.apply(variables, x.swapaxes(1, 2))
    state = weights.to_torch(variables, TIMMS_NAMES)
    with pytest.raises(InputError, match=r"misshapen: gather.conv1.weight \(32, 1, 8, 6\)"):
        weights.load(layer, state, (2, 9, 6, 32), TIMMS_NAMES)


def test_timms_padded_kernel_over_the_map_is_refused(x):
    """The same tensors, but timm's convolution returns a map."""
    layer = GatherExcite.theta()
    state = weights.to_torch(jax.jit(layer.init)(jax.random.key(1), x), TIMMS_NAMES)
    with pytest.raises(InputError, match=r"unexpected: gather\.conv1\.weight"):
        weights.load(layer, state, x.shape)


def test_a_local_gate_covers_its_extent(x):
    layer = GatherExcite.theta(extent=4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y, sown = contract.sown(layer, variables, x)
    (gate,) = sown["attention"]
    assert gate.shape == (2, 2, 2, 32)
    np.testing.assert_allclose(
        (y / x)[:, :4, :3], jnp.broadcast_to(gate[:, :1, :1], (2, 4, 3, 32)), rtol=1e-4
    )
    layer.apply(variables, jnp.ones((1, 5, 9, 32)))  # local kernels fit every map


def test_parameter_counts():
    """C H W + 2C globally, 33C at extent 8, and 2Ch + h + C of the MLP (mechanisms, B1)."""

    def count(layer):
        x = jax.ShapeDtypeStruct((1, 14, 14, 64), jnp.float32)
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        return sum(p.size for p in jax.tree.leaves(variables.get("params", {})))

    mlp = 2 * 64 * 4 + 4 + 64
    assert count(GatherExcite()) == 0
    assert count(GatherExcite.theta()) == 64 * 196 + 2 * 64
    assert count(GatherExcite.theta_plus()) == 64 * 196 + 2 * 64 + mlp
    assert count(GatherExcite.theta(extent=8)) == 33 * 64
    assert count(GatherExcite.theta_plus(extent=2)) == 11 * 64 + mlp


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"extent": 6}, "extent=6 must be a power of two above one: use 2, 4 or 8, or 0"),
        ({"extent": 1}, "extent=1 must be a power of two"),
        ({"extent": -2}, "extent=-2 must be a power of two"),
        ({"gather": "max"}, "unknown gather 'max'"),
        ({"mlp": True, "reduction": 64}, "reduction=64 leaves no channel of 32"),
    ],
)
def test_refuses(x, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        GatherExcite(**fields).init(jax.random.key(0), x)


@pytest.mark.parametrize("layer", [GatherExcite(), GatherExcite(extent=2)])
def test_bfloat16(layer):
    x = jax.random.normal(jax.random.key(0), (2, 9, 7, 32)).astype(jnp.bfloat16)
    answer, sown = contract.sown(layer, {}, x)
    exact = contract.sown(layer, {}, x.astype(jnp.float32))[1]
    assert answer.dtype == jnp.bfloat16
    np.testing.assert_allclose(sown["attention"][0], exact["attention"][0], rtol=1e-6)


def test_bfloat16_of_a_global_kernel():
    contract.check_bfloat16(GatherExcite.theta())

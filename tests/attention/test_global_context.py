import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import GlobalContext
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import global_context
from tests.torch_reference.torchvision_shim import timm

BOTH = {"pool": "average", "fusions": ("scale", "add")}

CASES = [
    Case(
        ("global_context", "global_context.official"),
        {"reduction": 4},
        lambda: global_context.ContextBlock(32, 8),
        "official",
    ),
    Case(
        ("global_context.official, average and both fusions",),
        {"reduction": 4, **BOTH},
        lambda: global_context.ContextBlock(32, 8, "avg", ("channel_add", "channel_mul")),
        "official",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(("global_context.timm",), {}, lambda: timm.layers.GlobalContext(32), "timm"),
    Case(
        ("global_context.timm_add",),
        {},
        lambda: timm.layers.GlobalContext(32, fuse_add=True, fuse_scale=False),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
    Case(
        ("global_context.timm, average and both fusions",),
        BOTH,
        lambda: timm.layers.GlobalContext(32, use_attn=False, fuse_add=True),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def at_first(layer, x):
    return layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x)


def test_the_authors_start_adds_nothing_and_halves(x):
    np.testing.assert_array_equal(at_first(GlobalContext(), x), x)
    np.testing.assert_array_equal(at_first(GlobalContext(fusions=("scale",)), x), x / 2)


def test_timm_starts_by_adding_one_random_vector_everywhere(x):
    """Only the weight of the last layer starts at zero there, not its bias."""
    layer = GlobalContext.timm_add()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    added = layer.apply(variables, x) - x
    last = variables["params"]["channel_add_conv_3"]
    assert not last["kernel"].any()
    assert 0.25 < abs(last["bias"]).max() < 0.5  # drawn from U(-1/2, 1/2), for four go in
    np.testing.assert_allclose(added, jnp.broadcast_to(last["bias"], x.shape), atol=1e-6)
    theirs = timm.layers.GlobalContext(32, fuse_add=True, fuse_scale=False).mlp_add.fc2
    assert not theirs.weight.any()
    assert 0.25 < theirs.bias.abs().max() < 0.5


@pytest.mark.parametrize("features", [4, 32, 44, 136])
def test_timm_rounds_the_width(features):
    x = jax.ShapeDtypeStruct((1, 2, 2, features), jnp.float32)
    params = jax.eval_shape(GlobalContext.timm().init, jax.random.key(0), x)["params"]
    theirs = timm.layers.GlobalContext(features).mlp_scale.fc1.out_channels
    assert params["channel_mul_conv_0"]["kernel"].shape[-1] == theirs


def test_the_position_with_the_largest_logit_is_the_context():
    x = jnp.ones((1, 3, 4, 32)).at[0, 1, 2].set(9.0)
    layer = GlobalContext(reduction=4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["conv_mask"]["kernel"] = jnp.full((1, 1, 32, 1), 1.0)
    _, sown = contract.sown(layer, variables, x)
    weights = sown["attention"][0]["position"]
    np.testing.assert_allclose(weights, (x == 9.0)[..., :1], atol=1e-6)


def test_parameter_count():
    """2Ch + 3h + 2C + 1 (mechanisms, B7)."""
    x = jax.ShapeDtypeStruct((1, 7, 7, 256), jnp.float32)
    params = jax.eval_shape(GlobalContext().init, jax.random.key(0), x)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == 2 * 256 * 16 + 3 * 16 + 2 * 256 + 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"reduction": 33}, "reduction=33 leaves no channel of 32"),
        ({"reduction": 0}, "reduction=0 is below one"),
        ({"epsilon": 0.0}, "epsilon=0.0 is not positive"),
        ({"epsilon": -1e-5}, "epsilon=-1e-05 is not positive"),
        ({"pool": "att"}, r"unknown pool 'att': did you mean attention"),
        ({"fusions": "add"}, "fusions='add' must be a sequence of strings"),
        ({"fusions": ()}, r"fusions=\(\) leaves nothing to do"),
        ({"fusions": ("add", "multiply")}, "unknown fusion 'multiply': .* Known: add, scale"),
        ({"zero_init": "kernels"}, "unknown zero_init 'kernels': did you mean kernel"),
    ],
)
def test_what_it_cannot_do(x, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        GlobalContext(**fields).init(jax.random.key(0), x)


def test_bfloat16():
    contract.check_bfloat16(GlobalContext(pool="average", fusions=("scale",), zero_init="nothing"))
    contract.check_bfloat16(GlobalContext.timm(), same_gate=False)

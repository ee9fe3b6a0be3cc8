"""Window attention: parity with timm and torchvision, what the shift and the padding do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import weights
from flaxattn.attention import WindowAttention
from flaxattn.attention.window_attention import _relative_position_index, _seams
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference import window_attention
from tests.torch_reference.torchvision_shim import timm

Torchvision = window_attention.TorchvisionWindowAttention
Timm = window_attention.TimmWindowAttention

CASES = [
    Case(("window",), {}, lambda: Torchvision(32, 1), "official"),
    Case(("window.shifted",), {}, lambda: Torchvision(32, 1, shift_size=3), "official"),
    Case(
        ("window.timm",),
        {"num_heads": 4, "shift_size": 3},
        lambda: Timm(32, 4, shift_size=3),
        "timm",
        on=Inputs(maps=((13, 7), (21, 14)), refused=((1, 1),)),
        # there timm shrinks its windows
    ),
    Case(
        ("window.timm, plain",),
        {"num_heads": 4, "window_size": 4, "qkv_bias": False},
        lambda: Timm(32, 4, window_size=4, qkv_bias=False),
        "timm",
        on=Inputs(maps=((13, 7),)),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 8, 8, 32))


def reach(layer, shape, position):
    """Which positions of the map the answer at `position` depends on."""
    x = jax.random.normal(jax.random.key(0), (1, *shape, 32))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    gradient = jax.grad(lambda x: layer.apply(variables, x)[0][position].sum())(x)
    return np.abs(gradient[0]).max(-1) > 1e-12


def box(shape, rows, columns):
    expected = np.zeros(shape, bool)
    expected[slice(*rows), slice(*columns)] = True
    return expected


@pytest.mark.parametrize(
    ("shift_size", "position", "rows", "columns"),
    [
        (0, (1, 5), (0, 4), (4, 8)),
        (2, (3, 5), (2, 6), (2, 6)),  # a whole shifted window
        (2, (0, 3), (0, 2), (2, 6)),  # what the shift leaves at the top: not the bottom too
        (2, (7, 7), (6, 8), (6, 8)),
    ],
)
def test_a_position_sees_its_window(shift_size, position, rows, columns):
    layer = WindowAttention(window_size=4, shift_size=shift_size)
    np.testing.assert_array_equal(reach(layer, (8, 8), position), box((8, 8), rows, columns))


def test_rolling_before_padding_joins_opposite_edges():
    """On 7 rows in windows of 4: the last, half empty window of the rolled map has rows 6, 0, 1."""
    ours = WindowAttention(window_size=4, shift_size=2)
    np.testing.assert_array_equal(reach(ours, (7, 8), (6, 3)), box((7, 8), (6, 7), (2, 6)))
    theirs = reach(WindowAttention.timm(window_size=4, shift_size=2), (7, 8), (6, 3))
    assert theirs[0].any()
    assert theirs[6].any()


def test_where_windows_tile_the_map_the_order_does_not_matter(x):
    layer = WindowAttention.shifted(window_size=4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y = layer.clone(roll_first=True).apply(variables, x)
    np.testing.assert_array_equal(y, layer.apply(variables, x))


def test_masks_are_those_of_timm():
    for height, width, size, shift in ((8, 12, 4, 2), (13, 7, 7, 3), (14, 14, 7, 3), (9, 10, 3, 1)):
        shifts = tuple(shift if side > size else 0 for side in (height, width))
        padded = tuple(-(-side // size) * size for side in (height, width))
        expected = window_attention.masks(height, width, size, shift).numpy()
        np.testing.assert_array_equal(_seams(padded, size, shifts)[0, :, 0], expected)


def test_an_axis_of_one_window_is_not_shifted():
    x = jax.random.normal(jax.random.key(0), (2, 7, 7, 32))
    variables = WindowAttention().init(jax.random.key(1), x)
    y = WindowAttention.shifted().apply(variables, x)
    np.testing.assert_array_equal(y, WindowAttention().apply(variables, x))


def test_bias_moves_attention_by_offset():
    """A large bias for the offset (-1, 0), alone: each position takes the value of the next row."""
    layer = WindowAttention(window_size=3)
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 32))
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    params = variables["params"]
    row = (-1 + 2) * 5 + (0 + 2)
    params["relative_position_bias_table"] = jnp.zeros((25, 1)).at[row].set(50.0)
    params["qkv"]["kernel"] = jnp.tile(jnp.eye(32), (1, 3)).at[:, :64].set(0)
    params["proj"]["kernel"] = jnp.eye(32)
    np.testing.assert_allclose(layer.apply(variables, x)[0, :2], x[0, 1:], rtol=1e-4, atol=1e-4)


def test_what_follows_from_the_fields_is_left_out_of_the_weights(x):
    reference = Torchvision(32, 1, buffer=True)
    state = {key: value.detach().numpy() for key, value in reference.state_dict().items()}
    assert "relative_position_index" in state
    variables = weights.load(WindowAttention(), state, x.shape, "official")
    back = weights.to_torch(variables, "official", module=WindowAttention())
    assert back.keys() == state.keys() - {"relative_position_index"}


def test_index_is_that_of_timm():
    theirs = timm.models.swin_transformer.get_relative_position_index(7, 7).numpy()
    np.testing.assert_array_equal(_relative_position_index(7), theirs)


def test_heads_have_32_channels_unless_told():
    wide = jnp.zeros((1, 8, 8, 96))
    table = WindowAttention().init(jax.random.key(0), wide)["params"]
    assert table["relative_position_bias_table"].shape == (169, 3)


def test_a_wider_dtype_is_kept_up_to_the_answer(x):
    layer = WindowAttention.shifted(dtype=jnp.float32)
    narrow = x.astype(jnp.bfloat16)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    expected = layer.apply(variables, narrow.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(layer.apply(variables, narrow), expected)


def test_bfloat16():
    contract.check_bfloat16(WindowAttention.shifted(), same_gate=False)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_heads": 3}, "num_heads=3 cannot share 32 channels evenly"),
        ({"window_size": 0}, "window_size=0 must be 1 to 64"),
        ({"shift_size": 7}, "shift_size=7 does not lie within a window: use 0 to 6"),
        ({"shift_size": -1}, "shift_size=-1 does not lie"),
    ],
)
def test_refuses(fields, sentence, x):
    with pytest.raises(InputError, match=sentence):
        WindowAttention(**fields).init(jax.random.key(0), x)


def test_refuses_channels_that_are_no_heads_of_32():
    with pytest.raises(InputError, match="heads of 32 channels, and 48 are not a multiple"):
        WindowAttention().init(jax.random.key(0), jnp.zeros((1, 7, 7, 48)))

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxattn import Conv, weights
from flaxattn.errors import InputError
from flaxattn.layers.conv import require_odd


@settings(max_examples=25)
@given(
    spatial=st.integers(1, 3),
    kernel_size=st.sampled_from([1, 3, 5]),
    strides=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    padding=st.sampled_from([None, 0, 2]),
    use_bias=st.booleans(),
    size=st.integers(9, 12),
)
def test_is_torchs(spatial, kernel_size, strides, dilation, groups, padding, use_bias, size):
    rng = np.random.default_rng(0)
    torch_class = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[spatial - 1]
    torch_padding = dilation * (kernel_size // 2) if padding is None else padding
    theirs = torch_class(4, 8, kernel_size, strides, torch_padding, dilation, groups, bias=use_bias)
    ours = Conv(
        8,
        kernel_size,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        use_bias=use_bias,
    )
    x = rng.normal(size=(2, *[size + axis for axis in range(spatial)], 4)).astype(np.float32)
    state = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    answer = ours.apply(weights.load(ours, state, x.shape), x)
    expected = theirs(torch.tensor(np.moveaxis(x, -1, 1).copy())).detach().numpy()
    np.testing.assert_allclose(answer, np.moveaxis(expected, 1, -1), rtol=1e-4, atol=1e-5)


def test_padding_is_symmetric_where_same_is_not():
    """At stride 2 on an even map "SAME" would pad at the end alone and shift by one pixel."""
    x = jnp.arange(8.0).reshape(1, 8, 1)
    conv = Conv(1, 3, strides=2, use_bias=False)
    first = {"params": {"kernel": jnp.asarray([1.0, 0, 0]).reshape(3, 1, 1)}}
    assert conv.apply(first, x)[0, :, 0].tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize("kernel_size", [2, (3, 4)])
def test_even_kernel_without_padding(kernel_size):
    with pytest.raises(InputError, match=r"kernel_size=\d cannot keep the size .* use an odd one"):
        Conv(1, kernel_size).init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))


@pytest.mark.parametrize(
    ("kernel_size", "advice"), [(-2, "1 or 3"), (0, "1 or 3"), (2, "1 or 3"), (6, "5 or 7")]
)
def test_the_nearest_odd_kernels_are_advised(kernel_size, advice):
    with pytest.raises(InputError, match=f"use an odd one, such as {advice}"):
        require_odd(kernel_size)


@pytest.mark.parametrize(
    "fields",
    [
        {"features": 0},
        {"kernel_size": 0},
        {"kernel_size": (3, -1), "padding": 1},
        {"strides": 0},
        {"strides": (1, 0)},
        {"dilation": 0},
        {"groups": 0},
    ],
    ids=str,
)
def test_nothing_is_below_one(fields):
    field, value = next(iter(fields.items()))
    conv = Conv(**{"features": 4, "kernel_size": 3, **fields})
    with pytest.raises(InputError, match=re.escape(f"{field}={value} is below one")):
        conv.init(jax.random.key(0), jnp.ones((1, 8, 8, 4)))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"padding": -1}, "padding=-1 is below zero: use 0 or more"),
        ({"features": "4"}, "Conv.features='4' must be an integer."),
        ({"strides": 1.5}, "strides=1.5 must be an integer or a sequence of integers"),
        (
            {"kernel_size": (3,)},
            r"kernel_size=\(3,\) must be an integer, or 2, one for each axis",
        ),
        ({"padding": 0, "groups": 4}, "kernel_size=3 with dilation=1 covers 3 positions of an "),
        ({"kernel_size": 5, "padding": 1}, "of an axis of 2, 4 with padding=1: use a larger map"),
        ({"dilation": 2, "padding": 1}, "kernel_size=3 with dilation=2 covers 5 positions"),
    ],
    ids=str,
)
def test_what_is_no_convolution(fields, sentence):
    def make():
        conv = Conv(**{"features": 4, "kernel_size": 3, **fields})
        return conv.init(jax.random.key(0), jnp.ones((1, 2, 6, 4)))

    with pytest.raises(InputError, match=sentence):
        make()


def test_numbers_of_numpy_count_as_integers():
    conv = Conv(np.int64(4), (np.int32(3), 3), groups=np.int64(2))
    assert conv.init(jax.random.key(0), jnp.ones((1, 2, 6, 4)))["params"]["kernel"].shape == (
        3,
        3,
        2,
        4,
    )


def test_precision_reaches_the_convolution():
    x = jnp.ones((1, 8, 8, 4))
    for precision, written in ((None, "DEFAULT"), (jax.lax.Precision.HIGHEST, "HIGHEST")):
        conv = Conv(4, 3, precision=precision)
        variables = jax.jit(conv.init)(jax.random.key(0), x)
        text = jax.jit(conv.apply).lower(variables, x).as_text()
        assert f"precision_config = [#stablehlo<precision {written}>" in text


def test_even_kernel_with_padding():
    answer, _ = Conv(1, 2, padding=1).init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    assert answer.shape == (1, 9, 9, 1)


def test_groups_that_do_not_divide():
    with pytest.raises(
        InputError, match="groups=3 must divide both the 4 input channels and the 6"
    ):
        Conv(6, 3, groups=3).init(jax.random.key(0), jnp.ones((1, 8, 8, 4)))


def test_initial_weights_are_spread_as_torchs():
    kernel = Conv(64, 3).init(jax.random.key(0), jnp.ones((1, 8, 8, 64)))["params"]["kernel"]
    bound = 1 / np.sqrt(3 * 3 * 64)
    assert float(jnp.abs(kernel).max()) <= bound
    assert float(kernel.std()) == pytest.approx(bound / np.sqrt(3), rel=0.02)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention import FrequencyChannel, SqueezeExcite
from flaxattn.attention.frequency_channel import FREQUENCIES, _as_products, _as_sums, cosines
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs
from tests.torch_reference.frequency_channel import FcaLayer, X, Y

CASES = [
    Case(("fca", "fca.official"), {"dct_size": 7}, lambda: FcaLayer(32, 7, 7), "official"),
    Case(
        ("fca, dct_size None",),
        {},
        lambda: FcaLayer(32, 7, 14),
        "official",
        on=Inputs(maps=((7, 14), (13, 20), (2, 15))),
    ),
    Case(
        ("fca, low8",),
        {"dct_size": (28, 14), "reduction": 4, "frequencies": "low8"},
        lambda: FcaLayer(32, 28, 14, 4, "low", 8),
        "official",
        on=Inputs(maps=((28, 14),)),
    ),
]


def test_the_tables_are_the_authors():
    assert {kind: list(zip(X[kind], Y[kind], strict=True)) for kind in X} == {
        kind: FREQUENCIES[f"{kind}32"] for kind in X
    }
    assert all(len(set(pairs)) == len(pairs) for pairs in FREQUENCIES.values())
    assert FREQUENCIES["top2"] == [(0, 0), (0, 1)]


def test_the_basis_is_orthonormal_in_the_grid():
    basis = cosines(7, range(7))
    np.testing.assert_allclose(basis.T @ basis, np.eye(7), atol=1e-12)


def test_a_cpu_pools_as_other_platforms_do():
    x, rows, columns = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(2, 9, 5, 12), (9, 4), (5, 4)])
    )
    assert parity.difference(_as_sums(x, rows, columns), _as_products(x, rows, columns)) < 1e-6


def test_the_lowest_frequency_alone_is_squeeze_and_excitation():
    x = jax.random.normal(jax.random.key(0), (2, 7, 7, 32))
    fca, se = FrequencyChannel(frequencies="top1"), SqueezeExcite(use_bias=False)
    variables = jax.jit(fca.init)(jax.random.key(1), x)
    scaled = {"params": dict(variables["params"])}
    scaled["params"]["fc1"] = {"kernel": 7 * variables["params"]["fc1"]["kernel"]}
    assert parity.difference(fca.apply(variables, x), se.apply(scaled, x)) < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (6, 13), (7, 7), (28, 56), (50, 33)])
def test_without_a_size_the_grid_is_the_largest_that_fits(size):
    x = jax.random.normal(jax.random.key(0), (1, *size, 32))
    layer = FrequencyChannel()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    largest = tuple(max(7, side - side % 7) for side in size)
    np.testing.assert_array_equal(
        layer.apply(variables, x), layer.clone(dct_size=largest).apply(variables, x)
    )


def test_below_seven_the_authors_frequencies_are_all_one_and_ours_are_refused():
    weight = FcaLayer(32, 6, 6).dct_layer.weight
    assert weight.std() < 1e-12
    with pytest.raises(InputError, match="dct_size=6 is below the 7x7 grid"):
        FrequencyChannel(dct_size=6).init(jax.random.key(0), jnp.ones((1, 6, 6, 32)))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"frequencies": "top3"}, "unknown frequencies 'top3': did you mean"),
        ({"frequencies": "top32"}, "frequencies='top32' are 32 and must divide the 48 channels"),
        ({"dct_size": (7, 0)}, r"dct_size=\(7, 0\) is below"),
        ({"reduction": 64}, "reduction=64 leaves no channel of 48"),
    ],
)
def test_refuses(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        FrequencyChannel(**fields).init(jax.random.key(0), jnp.ones((1, 8, 8, 48)))


def test_bfloat16():
    small = jax.nn.initializers.normal(0.01)
    contract.check_bfloat16(FrequencyChannel(reduction=4, kernel_init=small))

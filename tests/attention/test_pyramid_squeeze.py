import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn.attention import PyramidSqueeze
from flaxattn.errors import InputError
from tests.attention import contract
from tests.attention.parity import Case, Inputs
from tests.torch_reference.pyramid_squeeze import PSAModule

# 56x56 would take half a minute on a CPU, in the gradients of the 9x9 convolution.
CASES = [
    Case(
        ("pyramid_squeeze",),
        {"features": 128, "strides": 2},
        lambda: PSAModule(64, 128, stride=2, reverse=False),
        "official",
        on=Inputs(maps=((13, 7),), features=64),
    ),
    Case(
        ("pyramid_squeeze.official",),
        {"features": 64},
        lambda: PSAModule(64, 64),
        "official",
        on=Inputs(maps=((14, 14), (13, 7), (1, 1)), features=64),
    ),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 6, 64))


def test_the_release_has_the_papers_branches_in_reverse(x):
    paper, release = PyramidSqueeze(64), PyramidSqueeze.official(64)
    variables = jax.jit(paper.init)(jax.random.key(1), x)
    ours, theirs = paper.apply(variables, x), release.apply(variables, x)
    for i in range(4):
        np.testing.assert_array_equal(
            ours[..., 16 * i : 16 * (i + 1)], theirs[..., 48 - 16 * i : 64 - 16 * i]
        )
    assert abs(ours - theirs).max() > 0.1


def test_proportions_stay_within_the_bounds_of_a_softmax_of_sigmoids(x):
    layer = PyramidSqueeze(64)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["fc2"]["kernel"] *= 1e6
    _, sown = contract.sown(layer, variables, x)
    shares = sown["attention"][0]
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert shares.min() >= 1 / (1 + 3 * np.e) - 1e-6
    assert shares.max() <= np.e / (3 + np.e) + 1e-6


def test_equal_gates_share_equally(x):
    layer = PyramidSqueeze(64)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    variables["params"]["fc2"]["kernel"] *= 0
    _, sown = contract.sown(layer, variables, x)
    np.testing.assert_array_equal(sown["attention"][0], jnp.full((2, 4, 16), 0.25))


@pytest.mark.parametrize(
    ("features", "fields", "sentence"),
    [
        (32, {}, "reduction=16 leaves no channel of the 8 .* features=32: .* at least 64"),
        (66, {}, "features=66 are not to be shared by 4 branches: use a multiple of 4"),
        (0, {}, "features=0 are not to be shared"),
        (96, {}, "groups=16 of a branch must divide both the 64 .* 24 of 96 features: use 8"),
        (64, {"groups": (1, 4)}, "make 4 and 2 branches"),
        (64, {"groups": (0, 4, 8, 16)}, "groups=0 of a branch"),
        (64, {"kernel_sizes": ()}, "make 0 and 4 branches"),
        (64, {"groups": 5}, "groups=5 of a branch must divide both the 64 input channels"),
        (64, {"kernel_sizes": (3, 5, 7, 8)}, "kernel_size=8 cannot keep the size"),
        (64, {"reduction": 0}, "reduction=0 is below one"),
        (64, {"strides": 0}, "strides=0 is below one"),
    ],
)
def test_what_it_cannot_do(features, fields, sentence, x):
    with pytest.raises(InputError, match=sentence):
        PyramidSqueeze(features, **fields).init(jax.random.key(0), x)


def test_bfloat16():
    def change(variables):
        params = contract.picking(variables["params"])
        return {"params": {**params, "fc1": contract.centred(params["fc1"])}}

    normal = nn.initializers.normal(1.0)
    layer = PyramidSqueeze(32, reduction=4, groups=(1, 2, 4, 8), kernel_init=normal)
    contract.check_bfloat16(layer, change=change)

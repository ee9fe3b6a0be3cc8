"""BAM: the paper's sum and the authors' product, and the authors' pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn import weights
from flaxattn.attention import BAM
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs, per_sample
from tests.torch_reference import bam

# Exact: the means of noise over 56x56 differ by a few hundredths from sample to sample; batch norm
# then divides by so little that torch's own float32 gradients are off by 1e-4 (ours: 1e-5).
CHANNEL, SPATIAL = "channel_att.gate_c.gate_c_", "spatial_att.gate_s.gate_s_"

CASES = [
    Case(
        ("bam", "bam.paper"),
        {"reduction": 4},
        lambda: bam.BAM(32, 4, paper=True),
        "official",
        refuses=per_sample,
        exact=True,
        # That of fc_0 is a shift too where a ReLU passes the same units of all samples.
        cancelled=(
            f"{CHANNEL}fc_0.bias",
            f"{CHANNEL}fc_final.bias",
            f"{SPATIAL}conv_final.bias",
        ),
    ),
    Case(
        ("bam.official",),
        {"reduction": 4},
        lambda: bam.BAM(32, 4),
        "official",
        on=Inputs(maps=((13, 7), (1, 1))),
        refuses=per_sample,
        exact=True,
        cancelled=(
            f"{CHANNEL}fc_0.bias",
            *(f"{SPATIAL}conv_{layer}.bias" for layer in ("reduce0", "di_0", "di_1")),
        ),
    ),
    Case(
        ("bam.official, the authors' pool",),
        {"reduction": 4},
        lambda: bam.BAM(32, 4, square_pool=True),
        "official",
        on=Inputs(maps=((13, 13), (1, 1))),
        modes=(False,),
    ),
]


OFFICIAL = BAM.official(reduction=4)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 5, 3, 32))


def official_on(shape):
    """The authors' code and ours with its weights, on one input of `shape`."""
    reference = bam.BAM(shape[-1], 4, square_pool=True).eval()
    parity.randomise(reference, np.random.default_rng(0))
    state = {key: value.numpy() for key, value in reference.state_dict().items()}
    variables = weights.load(OFFICIAL, state, shape, "official")
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    x += np.linspace(0, 2, shape[2], dtype=np.float32).reshape(1, 1, -1, 1)  # columns differ

    def theirs(x):
        with torch.no_grad():
            return parity.to_channels_last(
                reference(torch.tensor(parity.to_channels_first(x))).numpy()
            )

    return theirs, variables, x


def test_the_authors_code_reads_a_part_of_a_wide_map():
    theirs, variables, x = official_on((2, 6, 9, 32))
    assert parity.difference(OFFICIAL.apply(variables, x), theirs(x)) > 1e-3
    square = x[:, :, :6]
    assert parity.difference(OFFICIAL.apply(variables, square), theirs(square)) <= 1e-5


def test_the_authors_code_fails_on_a_high_map():
    theirs, variables, x = official_on((2, 9, 6, 32))
    with pytest.raises(RuntimeError):
        theirs(x)
    assert OFFICIAL.apply(variables, x).shape == x.shape


def test_the_branches_are_added_or_multiplied(x):
    """On the same weights; with a channel branch of zero the product's gate is 1/2."""
    paper, product = BAM(), BAM(merge="multiply")
    variables = jax.jit(paper.init)(jax.random.key(1), x)
    assert abs(paper.apply(variables, x) - product.apply(variables, x)).max() > 1e-2
    variables["params"]["gate_c_bn_final"]["scale"] *= 0
    np.testing.assert_allclose(product.apply(variables, x), 1.5 * x, rtol=1e-6)
    _, sown = contract.sown(paper, variables, x)
    assert np.asarray(sown["attention"][0]).std((1, 2)).max() > 1e-3
    assert np.asarray(sown["attention"][0]).std(-1).max() < 1e-6


@pytest.mark.parametrize("variant", BAM.variants)
def test_zero_kernels_leave_half_of_x_to_add(x, variant):
    layer = getattr(BAM, variant)(kernel_init=nn.initializers.zeros)
    np.testing.assert_array_equal(
        layer.apply(jax.jit(layer.init)(jax.random.key(1), x), x), 1.5 * x
    )


def test_the_gate_is_what_is_sown(x):
    layer = BAM()
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    y, sown = contract.sown(layer, variables, x)
    np.testing.assert_allclose(y, x + x * sown["attention"][0], rtol=1e-6)


def test_parameter_counts():
    """3Ch + C + 18h^2 + 13h + 1 as the authors have it (mechanisms, B2); 2C + 2 - 8h for ours."""

    def count(layer):
        x = jax.ShapeDtypeStruct((1, 7, 7, 128), jnp.float32)
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        return sum(p.size for p in jax.tree.leaves(variables["params"]))

    c, h = 128, 8
    official = 3 * c * h + c + 18 * h * h + 13 * h + 1
    assert count(BAM.official()) == official
    assert count(BAM.paper()) == official - 8 * h + 2 * c + 2


@pytest.mark.parametrize(
    ("fields", "train", "sentence"),
    [
        ({"reduction": 33}, False, "reduction=33 leaves no channel of 32"),
        ({"merge": "max"}, False, "unknown merge 'max'"),
        ({"dilation": 0}, False, "dilation=0 is below one"),
        ({}, True, "more than one value per channel"),
    ],
)
def test_refuses(fields, train, sentence):
    with pytest.raises(InputError, match=sentence):
        BAM(**fields).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)), train)


def test_bfloat16():
    """Without the spatial branch, whose convolutions round, the gate is that of the channels."""

    def change(variables):
        last = variables["params"]["gate_s_conv_final"]
        return jax.tree.map(lambda p: 0 * p if p is last["kernel"] else p, variables)

    contract.check_bfloat16(BAM(), same_gate=False)
    layer = BAM(reduction=4, kernel_init=nn.initializers.normal(0.03))
    contract.check_bfloat16(layer, change=change)

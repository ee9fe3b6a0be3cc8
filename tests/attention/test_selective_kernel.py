import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn import weights
from flaxattn.attention import SelectiveKernel, create_attention
from flaxattn.errors import InputError
from flaxattn.models import create_model
from tests.attention import contract, parity
from tests.attention.parity import Case, Inputs, per_sample
from tests.torch_reference.selective_kernel import (
    SelectiveKernelInsight,
    SelectiveKernelUnit,
    SkNet,
)
from tests.torch_reference.torchvision_shim import timm

# Exact: at 56x56 the averages of different samples hardly differ, and normalising them over the
# batch magnifies their rounding: torch's float32 gradient of fc_reduce is 6e-4 off its own float64
# one there (ours 2e-5), and 5e-5 at 28x28.
SMALL = ((13, 7),)

CASES = [
    Case(
        ("sk",),
        {"features": 32},
        lambda: SelectiveKernelUnit(32),
        "timm",
        refuses=per_sample,
        exact=True,
    ),
    Case(
        ("sk.official, three branches",),
        {"features": 32, "kernel_sizes": (3, 5, 7), "groups": 8},
        lambda: SelectiveKernelUnit(32, 3, groups=8, momentum=0.05),
        "timm",
        on=Inputs(maps=SMALL),
        refuses=per_sample,
        exact=True,
    ),
    Case(
        ("sk.official",),
        {"features": 32},
        lambda: SelectiveKernelUnit(32, momentum=0.05),
        "timm",
        on=Inputs(maps=SMALL),
        refuses=per_sample,
        exact=True,
    ),
    Case(
        ("sk.insight",),
        {"features": 32},
        lambda: SelectiveKernelInsight(32),
        "insight",
        on=Inputs(maps=((13, 7), (1, 1))),
        refuses=per_sample,
        exact=True,
    ),
    Case(
        ("sk.timm, of all channels, true 5x5",),
        {"features": 32, "split_input": False, "dilated": False},
        lambda: timm.layers.SelectiveKernel(32, split_input=False, keep_3x3=False),
        "timm",
        on=Inputs(maps=SMALL),
        refuses=per_sample,
        exact=True,
    ),
    Case(
        ("sk.timm",),
        {"features": 32},
        lambda: timm.layers.SelectiveKernel(32),
        "timm",
        on=Inputs(maps=((13, 7), (1, 1))),
        refuses=per_sample,
        exact=True,
    ),
    Case(
        ("sk.article_s2, softmax",),
        {"features": 32, "softmax": True},
        lambda: SkNet(32, softmax=True),
        "articles",
        on=Inputs(maps=SMALL),
    ),
    Case(("sk.article_s2",), {"features": 32}, lambda: SkNet(32), "articles"),
]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (2, 6, 5, 16))


def start(layer, x):
    return jax.jit(layer.init)(jax.random.key(0), x)


def test_the_papers_unit_is_timms_with_the_papers_settings():
    """timm's own code, told to do what the paper says, with strides on an odd and an even side."""
    theirs = timm.layers.SelectiveKernel(
        64, stride=2, groups=32, rd_channels=32, split_input=False
    ).eval()
    parity.randomise(theirs, np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=(2, 7, 10, 64)).astype(np.float32)
    layer = SelectiveKernel(64, strides=2)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    answer = layer.apply(weights.load(layer, state, x.shape), jnp.asarray(x))
    with torch.no_grad():
        expected = theirs(torch.tensor(parity.to_channels_first(x))).numpy()
    assert answer.shape == (2, 4, 5, 64)
    assert parity.difference(answer, parity.to_channels_last(expected)) <= 1e-5


@pytest.mark.parametrize(
    ("features", "paper", "insight", "timms"),
    [(64, 32, 4, 8), (176, 32, 11, 16), (512, 32, 32, 32), (1024, 64, 64, 64)],
)
def test_hidden_widths(features, paper, insight, timms):
    """Where a multiple of 8 would be more than a tenth too narrow, timm takes the next one."""
    x = jax.ShapeDtypeStruct((2, 4, 4, features), jnp.float32)

    def hidden(layer):
        tree = jax.eval_shape(layer.init, jax.random.key(0), x)
        return tree["params"]["attn"]["fc_reduce"]["kernel"].shape[-1]

    assert hidden(SelectiveKernel(features, groups=16)) == paper
    assert hidden(SelectiveKernel.insight(features, groups=(1, 16))) == insight
    theirs = timm.layers.SelectiveKernel(features).attn.fc_reduce.out_channels
    assert hidden(SelectiveKernel.timm(features)) == theirs == timms


@pytest.mark.parametrize("kernel_sizes", [(3, 5), (3, 5, 7)])
def test_equal_logits_average_the_branches(kernel_sizes, x):
    layer = SelectiveKernel(16, groups=4, kernel_sizes=kernel_sizes)
    variables = start(layer, x)
    variables["params"]["attn"]["fc_select"]["kernel"] *= 0
    alone = []
    for i, size in enumerate(kernel_sizes):
        one = SelectiveKernel(16, groups=4, kernel_sizes=(size,))
        tree = start(one, x)
        tree["params"]["paths_0"] = variables["params"][f"paths_{i}"]
        alone.append(one.apply(tree, x))
    np.testing.assert_allclose(layer.apply(variables, x), sum(alone) / len(alone), atol=1e-6)


def test_article_with_zero_logits_answers_zero(x):
    layer = SelectiveKernel.article_s2(16)
    variables = start(layer, x)
    variables["params"]["attn"]["fc_select"]["kernel"] *= 0
    np.testing.assert_array_equal(layer.apply(variables, x), np.zeros_like(x))


def test_the_softmax_that_the_article_forgot_takes_the_same_checkpoint(x):
    article = SelectiveKernel.article_s2(16, reduction=4)
    meant = SelectiveKernel.article_s2(16, reduction=4, softmax=True)
    variables = start(article, x)
    as_written, raw = contract.sown(article, variables, x)
    repaired, shares = contract.sown(meant, variables, x)
    np.testing.assert_allclose(shares["attention"][0].sum(1), 1, atol=1e-6)
    assert abs(raw["attention"][0].sum(1) - 1).min() > 0.1
    assert abs(as_written - repaired).max() > 0.1


def test_the_release_starts_with_almost_equal_shares(x):
    layer = SelectiveKernel.official(16, groups=4)
    _, sown = contract.sown(layer, start(layer, x), x)
    np.testing.assert_allclose(sown["attention"][0], 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("fields", "inside", "beside"),
    [({}, {"paths_0", "paths_1", "attn"}, False), ({"variant": "article_s2"}, None, True)],
)
def test_in_a_block_the_units_own_norm_replaces_the_blocks(fields, inside, beside):
    """The article's unit has none: there the block's norm and ReLU stay."""
    model = create_model("resnet10", conv={"name": "sk", **fields})
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    block = jax.eval_shape(model.init, jax.random.key(0), images)["params"]["layer2_0"]
    assert ("bn1" in block) == beside
    assert ("bn" in block["conv1"]["paths_0"]) != beside
    assert inside is None or set(block["conv1"]) == inside


def test_a_residual_network_of_units_is_timms():
    sk = {"rd_ratio": 1 / 8, "rd_divisor": 16, "split_input": True}
    theirs = timm.models.resnet.ResNet(
        timm.models.sknet.SelectiveKernelBasic,
        layers=(1, 1, 1, 1),
        channels=(64, 128, 256, 512),
        num_classes=10,
        block_args={"sk_kwargs": sk},
    ).eval()
    parity.randomise(theirs, np.random.default_rng(0))
    unit = {"name": "sk", "variant": "timm", "reduction": 8, "divisor": 16}
    model = create_model("resnet10", num_classes=10, stage_sizes=(1, 1, 1, 1), conv=unit)
    # timm keeps a block's second convolution and its norm in one module
    naming = (("conv2.conv", "conv2"), ("conv2.bn", "bn2"), ("conv1", "conv1"))
    x = np.random.default_rng(1).normal(size=(2, 33, 40, 3)).astype(np.float32)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    logits = model.apply(weights.load(model, state, x.shape, naming), jnp.asarray(x))
    with torch.no_grad():
        expected = theirs(torch.tensor(parity.to_channels_first(x))).numpy()
    assert parity.difference(logits, expected) <= 1e-4


def test_features_may_differ_from_the_input(x):
    assert SelectiveKernel(24, groups=8).init_with_output(jax.random.key(0), x)[0].shape[-1] == 24


@pytest.mark.parametrize(
    ("variant", "fields", "sentence"),
    [
        (None, {}, "groups=32 must divide both the 16 input channels .* use groups=16 or another"),
        (None, {"groups": 0}, "groups=0 is below one"),
        (None, {"groups": (1, 2, 4)}, "groups=.* are 3 for 2 branches: give one"),
        (None, {"groups": 4, "kernel_sizes": ()}, "kernel_sizes=.* makes 0 branches"),
        (None, {"groups": 4, "kernel_sizes": (3, 4)}, "kernel_size=4 cannot keep the size"),
        (None, {"groups": 4, "strides": 0}, "strides=0 is below one"),
        ("timm", {"kernel_sizes": (3, 5, 7)}, "cannot share 16 channels between 3 branches"),
        ("article_s2", {"reduction": 17}, "reduction=17 leaves no channel of 16"),
    ],
)
def test_what_it_cannot_do(variant, fields, sentence, x):
    with pytest.raises(InputError, match=sentence):
        start(create_attention("sk", variant=variant, features=16, **fields), x)


def test_bfloat16():
    contract.check_bfloat16(SelectiveKernel(32), same_gate=False)
    layer = SelectiveKernel(32, norm=None, fc_init=nn.initializers.normal(0.02))
    contract.check_bfloat16(layer, change=contract.picking)

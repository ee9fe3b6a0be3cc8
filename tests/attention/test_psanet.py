"""Point-wise spatial attention: both directions, all masks, linear memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.attention.psanet import PSANet
from flaxattn.errors import InputError
from tests.attention import contract, parity
from tests.attention.parity import FEATURES, Case, Inputs
from tests.torch_reference.psanet import PSA


def case(row, mask, *, shape=(13, 7), query_chunk=None, **fields):
    """A case on maps of one shape, for the full mask depends on it; `fields` are the layer's beside
    widths and mask."""
    theirs = {
        "kinds": (fields["direction"],) if "direction" in fields else ("collect", "distribute"),
        "compact": fields.get("compact", False),
        "shrink": 2 if ".official" in row else 1,
        "factor": fields.get("normalization_factor", 1.0),
        "softmax": fields.get("softmax", True),
    }
    return Case(
        (row,),
        {"features": FEATURES, "hidden": 8, "query_chunk": query_chunk, **fields},
        lambda: PSA(FEATURES, mask, **theirs),
        "semseg",
        on=Inputs(maps=(shape,)),
    )


def large(row, **fields):
    found = case(row, (7, 9), shape=(56, 56), mask_size=(7, 9), **fields)
    return found._replace(on=found.on._replace(slow=True))


CASES = [
    case("psanet, 7x5", (13, 9), shape=(7, 5)),
    case("psanet, 13x7", (25, 13)),
    case("psanet, one position", (1, 1), shape=(1, 1)),
    case("psanet.official, 13x7", (13, 7)),
    case("psanet.official, chunked", (13, 7), query_chunk=5),
    case("psanet.official, one position", (1, 1), shape=(1, 1)),
    case("psanet, small mask", (3, 5), shape=(7, 5), mask_size=(3, 5), normalization_factor=None),
    case(
        "psanet, collect, small mask, chunked",
        (5, 3),
        shape=(7, 5),
        direction="collect",
        mask_size=(5, 3),
        softmax=False,
        query_chunk=100,
    ),
    case("psanet, distribute", (13, 9), shape=(7, 5), direction="distribute", softmax=False),
    case("psanet, compact", (7, 5), shape=(7, 5), compact=True),
    # A softmax over 56x56 positions leaves every position nearly the same mean, and in train mode
    # batch norm divides by what is left: torch's float32 answers are 2e-3 off there, its float64
    # gradients 3e-10. So that mode is compared without it.
    large("psanet, 56x56")._replace(modes=(False,), exact=True),
    large("psanet, 56x56, no softmax", softmax=False, normalization_factor=None),
]


def example(shape=(2, 5, 7, 16), **fields):
    layer = PSANet(**{"features": 16, "hidden": 8, **fields})
    x = jax.random.normal(jax.random.key(0), shape)
    return layer, jax.jit(layer.init)(jax.random.key(1), x), x


def test_x_itself_comes_first():
    layer, variables, x = example(features=6)
    answer = layer.apply(variables, x)
    assert answer.shape == (2, 5, 7, 22)
    np.testing.assert_array_equal(answer[..., :16], x)


def test_equal_logits_distribute_the_mean():
    layer, variables, x = example()
    params = variables["params"]
    for name in ("attention_3", "attention_p_3"):
        params[name]["kernel"] = jnp.zeros_like(params[name]["kernel"])
    _, sown = contract.sown(layer, variables, x)
    for weights in sown["attention"][0].values():
        np.testing.assert_allclose(weights, np.full((2, 35, 35), 1 / 35), rtol=1e-6)


def test_collect_reads_the_target_and_distribute_the_source():
    """Only weights that the changed position predicts may change: a row, or in all rows."""
    for direction, is_collect in (("collect", True), ("distribute", False)):
        layer, variables, x = example((1, 5, 7, 16), direction=direction, softmax=False)
        changed = x.at[0, 2, 3].multiply(-1)  # position 17
        (before, after) = (contract.sown(layer, variables, y)[1] for y in (x, changed))
        moved = abs(before["attention"][0][direction] - after["attention"][0][direction])[0]
        moved = moved if is_collect else moved.T
        assert moved[17].min() > 0
        np.testing.assert_array_equal(np.delete(moved, 17, axis=0), 0)


def test_positions_outside_the_mask_take_their_part_of_the_softmax():
    layer, variables, x = example((1, 5, 5, 16), mask_size=(3, 3), direction="collect")
    _, sown = contract.sown(layer, variables, x)
    centre = sown["attention"][0]["collect"][0, 12].reshape(5, 5)
    ring = np.array([centre[i, j] for i in range(5) for j in range(5) if {i, j} & {0, 4}])
    np.testing.assert_allclose(ring, ring[0], rtol=1e-6)
    assert 0.4 < ring.sum() < 0.8  # 16 of 25 have the logit 0


def test_a_mask_larger_than_the_map_is_fine():
    small, _, x = example()
    large = small.clone(mask_size=(11, 15))
    variables = jax.jit(large.init)(jax.random.key(1), x)
    kernels = {"attention_3": None, "attention_p_3": None}
    for name in kernels:
        kernel = variables["params"][name]["kernel"].reshape(8, 11, 15)
        kernels[name] = {"kernel": kernel[:, 1:-1, 1:-1].reshape(1, 1, 8, 9 * 13)}
    cut = {**variables, "params": {**variables["params"], **kernels}}
    np.testing.assert_allclose(large.apply(variables, x), small.apply(cut, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compact", [False, True])
def test_chunks_change_neither_values_nor_gradients(compact):
    layer, variables, x = example(compact=compact)

    def answer_and_gradients(layer):
        answer, pullback = jax.vjp(layer.apply, variables, x)
        return answer, pullback(jnp.cos(answer))

    full = answer_and_gradients(layer)
    chunked = answer_and_gradients(layer.clone(query_chunk=9))
    for ours, theirs in zip(jax.tree.leaves(chunked), jax.tree.leaves(full), strict=True):
        assert parity.difference(ours, theirs, at_least=1e-3) <= 1e-5


def temporary_bytes(side, query_chunk):
    """What XLA reserves for the answer and all gradients."""
    layer = PSANet(16, hidden=16, query_chunk=query_chunk, mask_size=(15, 15))
    x = jax.ShapeDtypeStruct((1, side, 32, 16), jnp.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)

    def loss(variables, x):
        return jnp.sum(jnp.sin(layer.apply(variables, x)))

    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return step.lower(variables, x).compile().memory_analysis().temp_size_in_bytes


def test_chunked_memory_grows_linearly():
    small, large = (temporary_bytes(side, 8) for side in (16, 64))
    assert large < 5 * small  # four times the positions
    assert large < temporary_bytes(64, None) / 4


def test_bfloat16_keeps_its_weights_in_float32():
    contract.check_bfloat16(PSANet(features=32, hidden=8), same_gate=False)


@pytest.mark.parametrize(
    ("fields", "size", "sentence"),
    [
        ({"shrink_factor": 2}, (10, 9), "shrink_factor=2 does not give a map of 10x9 back"),
        ({"shrink_factor": 0}, (5, 5), "shrink_factor=0 is below one"),
        ({"mask_size": (4, 5)}, (5, 5), r"mask_size=\(4, 5\) has no offset in its middle"),
        ({"mask_size": (-1, 5)}, (5, 5), r"mask_size=\(-1, 5\) has no"),
        ({"mask_size": (5,)}, (5, 5), r"mask_size=\(5,\) does not have two sides"),
        ({"normalization_factor": 0}, (5, 5), "normalization_factor=0 is not above zero"),
        ({"normalization_factor": -2.0}, (5, 5), "normalization_factor=-2.0 is not above zero"),
        ({"compact": True, "mask_size": (4, 5)}, (5, 5), r"use \(5, 5\), or compact=False"),
        ({"direction": "colect"}, (5, 5), "unknown direction 'colect': did you mean collect"),
        ({"hidden": 0}, (5, 5), "hidden=0 is below one"),
        ({"query_chunk": 0}, (5, 5), "query_chunk=0 is below one"),
    ],
)
def test_refuses(fields, size, sentence):
    with pytest.raises(InputError, match=sentence):
        PSANet(4, **fields).init(jax.random.key(0), jnp.zeros((1, *size, 8)))


@pytest.mark.parametrize("compact", [False, True])
def test_without_a_mask_size_refuses_maps_of_another_size(compact):
    layer, variables, x = example(compact=compact)
    with pytest.raises(InputError, match=r"kernel is .* made for a map of another size"):
        layer.apply(variables, x[:, 1:])

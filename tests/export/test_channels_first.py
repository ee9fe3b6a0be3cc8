"""Programs with their maps stored channels first: the same numbers, and no map turned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

from flaxattn.export.channels_first import channels_first, maps_order
from flaxattn.layers.conv import Conv

SHAPE = (2, 4, 6, 8)
RNG = np.random.default_rng(0)
X = RNG.normal(size=SHAPE).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 4, 6)).astype(np.float32)
MATRIX = RNG.normal(size=(8, 5)).astype(np.float32)
SQUARE = RNG.normal(size=(6, 6)).astype(np.float32)
EACH = RNG.normal(size=(1, 1, 1, 8)).astype(np.float32)


def convolved(x):
    y = lax.conv_general_dilated(
        *(x, KERNEL, (1, 2), ((1, 1), (0, 1))),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    return y + y.mean(axis=(1, 2), keepdims=True)


def positions(x):
    return x * jnp.stack([x.max(axis=3), x.mean(axis=3)], axis=-1).sum(-1)[..., None]


def windows(x):
    largest = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 3, 1), (1, 2, 1, 1), "SAME")
    return largest + lax.reduce_window(x, 0.0, lax.add, (1, 2, 1, 1), (1, 2, 1, 1), "VALID")


def softmax_of_positions(x):
    return jax.nn.softmax(x.reshape(2, 24, 8), axis=1).reshape(SHAPE) * x


def attention(x):
    queries, keys, values = (x.reshape(2, 24, 8) * scale for scale in (1.0, 0.5, 2.0))
    weights = jax.nn.softmax(jnp.einsum("nqc,nkc->nqk", queries, keys))
    return jnp.einsum("nqk,nkc->nqc", weights, values).reshape(SHAPE)


def loop(x):
    return lax.fori_loop(0, 3, lambda _, y: jax.nn.relu(y) - 0.5 * x, x)


def chosen(x):
    return lax.cond(x[0, 0, 0, 0] > 0, lambda x: x, lambda x: -x, x)


# With what each does, whether it needs no transposition.
FREE = {
    "convolved": convolved,
    "channels": lambda x: (x * EACH + jnp.float32(2)) / jnp.exp(EACH),
    "gate": lambda x: x * jax.nn.sigmoid(x.mean(axis=(1, 2)) @ MATRIX @ MATRIX.T)[:, None, None],
    "positions": positions,
    "stacked": lambda x: jnp.stack([x.mean((1, 2)), x.max((1, 2))], axis=1).prod(axis=1),
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 3)), constant_values=1.0),
    "taken": lambda x: x[:, np.array([0, 0, 3, 1])][:, :, np.array([5, 2])],
    "edge": lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)), "edge"),
    "sliced": lambda x: x[:, 1:3, ::2, 2:6],
    "joined": lambda x: jnp.concatenate([x, x[..., :3], jnp.ones_like(x)], axis=-1),
    "split": lambda x: jnp.concatenate(jnp.split(x, 2, axis=3)[::-1], axis=3),
    "reversed": lambda x: lax.cumsum(x, axis=2, reverse=True),
    "arg": lambda x: jnp.argmax(x, axis=-1),
    "sorted": lambda x: lax.sort(x, dimension=1),
    "best": lambda x: lax.top_k(x, 3),
    "windows": windows,
    "grouped": lambda x: (x.reshape(-1, 4, 6, 2, 4) * 2).sum(axis=4),
    "softmax": softmax_of_positions,
    "indexed": lambda x: (x[:, 0] + x[:, 1, 2, None]).sum(axis=1),
    "clipped": lambda x: jnp.where(x > 0, jnp.clip(x, -1.0, 0.5), EACH),
    "matrix": lambda x: x @ MATRIX,
    "rows": lambda x: jnp.einsum("nhwc,wv->nhvc", x, SQUARE),
    "again": jax.checkpoint(lambda x: jnp.sin(positions(x))),
    "constant": lambda x: x + jnp.arange(48.0).reshape(1, 1, 6, 8),
    "matrix before": lambda x: jnp.einsum("cd,nhwc->dnhw", MATRIX, x).sum(axis=0),
}
TURNED = {
    "attention": attention,
    "loop": loop,
    "chosen": chosen,
    "matrix for each column": lambda x: jnp.einsum("wc,nhwc->wnh", MATRIX[:6, :1] * EACH[0, 0], x),
}


def beyond(x):
    return lax.gather(
        *(x, np.array([9]), lax.GatherDimensionNumbers((0, 1, 2), (1,), (1,)), (2, 1, 6, 8)),
        mode="fill",
        fill_value=7.0,
    )


# Without transpositions or with them: what is empty, or lies outside.
RARE = {
    "nothing joined": lambda x: jnp.concatenate([x[:, :0], x[:, :0]], axis=1),
    "nothing reshaped": lambda x: x[:, :0].reshape(6, 0, 8),
    "beyond": beyond,
}


def is_turned(jaxpr):
    return [e for e in jaxpr.eqns if e.primitive.name == "transpose"]


def rewritten(function, *, batch=2):
    """The program channels first, and what it answers, in the order of the original."""
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, *SHAPE[1:]), jnp.float32))
    stored = jax.ShapeDtypeStruct((batch, 8, 4, 6), jnp.float32)
    return jax.make_jaxpr(channels_first(program))(stored)


@pytest.mark.parametrize("name", [*FREE, *TURNED, *RARE])
def test_the_answers_are_the_same(name):
    function = (FREE | TURNED | RARE)[name]
    program = rewritten(function)
    answers = jax.core.eval_jaxpr(program.jaxpr, program.consts, X.transpose(0, 3, 1, 2))
    for answer, wanted in zip(answers, jax.tree.leaves(function(X)), strict=True):
        wanted = np.transpose(wanted, maps_order(wanted.ndim))
        np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FREE)
def test_no_map_is_turned(name):
    assert not is_turned(rewritten(FREE[name]).jaxpr)


def test_what_one_platform_does_in_a_way_of_its_own_is_left_out():
    def function(x):
        return lax.platform_dependent(x, cpu=jnp.sin, tpu=jnp.tan, default=jnp.cos)

    (equation,) = rewritten(function).jaxpr.eqns
    assert equation.primitive.name == "cos"


def test_attention_turns_its_keys_alone():
    assert len(is_turned(rewritten(attention).jaxpr)) == 1


@pytest.mark.parametrize(
    "name", ["convolved", "gate", "positions", "grouped", "indexed", "taken", "rows"]
)
def test_the_batch_may_be_open(name):
    (batch,) = export.symbolic_shape("batch")
    jaxpr = rewritten(FREE[name], batch=batch).jaxpr
    assert not is_turned(jaxpr)
    assert jaxpr.outvars[0].aval.shape[0] == batch


def test_a_product_keeps_the_type_that_is_asked_for():
    def function(x):
        x, matrix = jnp.bfloat16(x), jnp.bfloat16(MATRIX)
        return jnp.matmul(x, matrix, preferred_element_type=jnp.float32)

    assert rewritten(function).out_avals[0].dtype == jnp.float32


def test_weights_are_turned_beforehand():
    layer = Conv(4, 3, groups=2)
    params = {"kernel": KERNEL[..., :4], "bias": EACH[0, 0, 0, :4]}
    program = rewritten(lambda x: layer.apply({"params": params}, x))
    assert {constant.shape for constant in program.consts} == {(4, 4, 3, 3), (1, 4, 1, 1)}


@st.composite
def reshapes(draw):
    """A few reshapes and transpositions after each other, as functions."""
    sizes, steps = (2, 3, 4, 6), []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            permutation = tuple(draw(st.permutations(range(len(sizes)))))
            steps.append(("transpose", permutation))
            sizes = tuple(sizes[axis] for axis in permutation)
            continue
        cuts = draw(st.lists(st.sampled_from((1, 2, 3, 4, 6, 12)), max_size=4))
        new, left = [], 144
        for cut in cuts:
            if left % cut == 0:
                new.append(cut)
                left //= cut
        place = draw(st.integers(0, len(new)))
        sizes = (*new[:place], left, *new[place:])
        steps.append(("reshape", sizes))
    return steps


@given(reshapes())
@settings(max_examples=60)
def test_any_reshapes_and_transpositions(steps):
    x = np.arange(144, dtype=np.float32).reshape(2, 3, 4, 6)

    def function(x):
        for word, argument in steps:
            x = getattr(jnp, word)(x, argument)
        return x

    program = channels_first(jax.make_jaxpr(function)(x))
    (answer,) = program(jnp.asarray(x.transpose(0, 3, 1, 2)))
    wanted = function(x)
    np.testing.assert_array_equal(answer, wanted.transpose(maps_order(wanted.ndim)))

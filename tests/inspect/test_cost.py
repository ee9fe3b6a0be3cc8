"""Multiply-adds against the formulas of the mechanisms, and against a published network."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from flaxattn import Conv, create_attention, create_model
from flaxattn.inspect.cost import cost, macs

N = 14 * 10  # positions


@pytest.mark.parametrize(
    ("layer", "parameters", "expected"),
    [
        (create_attention("se"), 2 * 64 * 4 + 64 + 4, 2 * 64 * 4),
        (create_attention("eca", kernel_size=5), 5, 5 * 64),
        (create_attention("spatial"), 98, 98 * N),
        (create_attention("channel"), 2 * 64 * 4, 2 * 2 * 64 * 4),
        (
            create_attention("self_attention"),
            64 * 64 + 2 * 64 * 8 + 64 + 16 + 1,
            (64 * 64 + 2 * 64 * 8) * N + N * N * (64 + 8),
        ),
        (Conv(64, 3, groups=64, use_bias=False), 9 * 64, 9 * 64 * N),
        (Conv(32, 3, groups=4), 9 * 16 * 32 + 32, 9 * 16 * 32 * N),
        (nn.Dense(7), 64 * 7 + 7, 64 * 7 * N),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_formulas(layer, parameters, expected):
    assert cost(layer, (1, 14, 10, 64)) == (parameters, expected)


def test_strides_and_batch_count():
    assert cost(Conv(8, 3, strides=2, use_bias=False), (3, 9, 9, 4)).macs == 3 * 25 * 9 * 4 * 8


def test_chunks_cost_what_the_whole_costs():
    """Equations inside loops are counted as often as they run."""
    whole = cost(create_attention("self_attention"), (2, 6, 6, 16))
    assert cost(create_attention("self_attention", query_chunk=9), (2, 6, 6, 16)) == whole


def test_resnet50_has_its_published_figures():
    spent = cost(create_model("resnet50"), (1, 224, 224, 3))
    assert spent.parameters == 25_557_032
    assert spent.macs == 4_089_184_256  # the 4.09 G of torchvision's table


def test_a_function_without_products_costs_nothing():
    assert macs(lambda x: jax.nn.softmax(x).sum(), jnp.ones((4, 4))) == 0

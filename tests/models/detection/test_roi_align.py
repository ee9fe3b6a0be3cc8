"""ROIAlign against an implementation in torch, in both formulations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn.errors import InputError
from flaxattn.models.detection.roi_align import roi_align
from tests.attention import parity
from tests.torch_reference.torchvision_shim import torchvision

HEIGHT, WIDTH = 224, 288
STRIDES = {"pyramid": (4, 8, 16, 32), "one scale": (32, 32)}
# Narrow boxes at the edges are widened and stick out; large ones are read from coarse levels.
EDGES = [
    [0, 0, 0, 0],
    [286, 100, 287.9, 223],
    [280, 222, 288, 223.5],
    [0, 221, 288, 224],
    [0, 0, 288, 224],
    [287.5, 0, 288, 224],
]


def boxes():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 1, size=(2, 90, 2)) * (WIDTH, HEIGHT)
    sides = np.exp(rng.uniform(-1, 6, size=corner.shape))
    limits = np.array([WIDTH, HEIGHT])
    drawn = np.concatenate([corner, np.minimum(corner + sides, limits)], axis=-1)
    return np.concatenate([drawn, np.tile(EDGES, (2, 1, 1))], axis=1)


@pytest.mark.parametrize("formulation", ["gather", "matmul"])
@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
def test_values_and_gradients_are_torchs(strides, formulation):
    rng = np.random.default_rng(1)
    maps = [rng.normal(size=(2, HEIGHT // s, WIDTH // s, 3)) for s in strides]
    cotangent = rng.normal(size=(2, boxes().shape[1], 7, 7, 3))

    theirs = [torch.tensor(parity.to_channels_first(x), requires_grad=True) for x in maps]
    names = [str(level) for level in range(len(maps))]
    pool = torchvision.ops.MultiScaleRoIAlign(names, 7, sampling_ratio=2)
    given = [torch.tensor(own) for own in boxes()]
    expected = pool(dict(zip(names, theirs, strict=True)), given, [(HEIGHT, WIDTH)] * 2)
    flat = parity.to_channels_first(cotangent.reshape(-1, 7, 7, 3))
    (expected * torch.tensor(flat)).sum().backward()

    @jax.jit
    def run(maps, boxes, cotangent):
        pooled, pullback = jax.vjp(
            lambda maps: roi_align(maps, boxes, strides, formulation=formulation), maps
        )
        return pooled, *pullback(cotangent)

    with jax.enable_x64(True):
        pooled, gradients = run([jnp.asarray(x) for x in maps], boxes(), cotangent)
    expected = parity.to_channels_last(expected.detach().numpy())
    assert parity.difference(pooled.reshape(expected.shape), expected) < 1e-12
    for ours, own in zip(gradients, theirs, strict=True):
        if own.grad is None:  # of a level that no box is read from
            np.testing.assert_array_equal(ours, 0)
        else:
            assert parity.difference(ours, parity.to_channels_last(own.grad.numpy())) < 1e-12


def test_maps_keep_their_dtype_and_their_digits_while_they_are_weighted():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 20, 30, 4)), jnp.bfloat16)
    box = jnp.array([[[3.0, 5.0, 70.0, 60.0]]])
    pool = jax.jit(lambda x: roi_align([x], box, [4]))
    low, high = pool(x), pool(x.astype(jnp.float32))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, high.astype(jnp.bfloat16))


def test_an_unknown_formulation_is_refused():
    with pytest.raises(InputError, match="unknown formulation 'einsum'"):
        roi_align([jnp.zeros((1, 4, 4, 1))], jnp.zeros((1, 1, 4)), [4], formulation="einsum")

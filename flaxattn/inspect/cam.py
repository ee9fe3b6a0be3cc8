"""Class activation maps: where in an image a network finds evidence for a class."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from flaxattn.errors import InputError, require_least, unknown
from flaxattn.inspect.class_score import Score, class_score
from flaxattn.inspect.layer_output import apply_with, find_layer
from flaxattn.layers.resize import resize_bilinear


def class_activation_maps(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Any,
    *,
    method: str = "grad_cam",
    layer: str | None = None,
    classes: Any = None,
    score: Score | None = None,
    chunk: int = 16,
    **fields: Any,
) -> Array:
    """Where a layer of a network has the evidence for a class.

        maps = class_activation_maps(model, variables, images, classes=281)
        heat = heat_maps(maps, images.shape[1:3])

    images (N, H, W, C) -> float32 (N, h, w), of the layer's size, 0 or more. With A the layer's
    output, S the score, g = dS/dA, and sums over channels k:

        | method             | map                                                            |
        |--------------------|----------------------------------------------------------------|
        | grad_cam           | relu(sum_k mean_hw(g_k) A_k)                  arXiv:1610.02391 |
        | grad_cam_plus_plus | relu(sum_k sum_hw(a_k relu(g_k)) A_k)         arXiv:1710.11063 |
        |                    | with a_k = g_k^2 / (2 g_k^2 + sum_hw(A_k) g_k^3)               |
        | layer_cam          | relu(sum_k relu(g_k) A_k)             doi 10.1109/TIP.2021.3089943 |
        | eigen_cam          | relu(A v), v the first right singular vector  arXiv:2008.00299 |
        | score_cam          | relu(sum_k softmax_k(S(images * M_k)) A_k)    arXiv:1910.01279 |

    In Score-CAM M_k is A_k resized to the images and scaled to [0, 1].

    It is a pure function of variables and images that works on any Linen module and can be
    compiled: jax.jit(functools.partial(class_activation_maps, model, method="layer_cam")).

    Args:
        model: called as model.apply(variables, images, **fields): a classifier, segmenter or
            detector of flaxattn, or any other.
        variables: its variables.
        images: what it is called with.
        method: one of `METHODS`.
        layer: the path of a layer that returns maps, such as "layer4_1" or "backbone/layer4_1";
            None for the last block of the (first) backbone of flaxattn in the model. A VGG's last
            layer is its last convolution or norm, before the ReLU.
        classes: see `class_score`. Eigen-CAM does without, and without a score.
        score: what the map explains instead, from the model's outputs: (N,). An image's may depend
            on this image alone.
        chunk: of Score-CAM: for how many channels at once the network is run.
        fields: further arguments of its call, by keyword, such as a detector's `sizes`.

    Deviations from the papers, and differences from pytorch-grad-cam (1.5.7):

    * Grad-CAM++ differentiates exp(S). As there, its factor exp(S), the same at all positions of an
      image, is left out, for it overflows. There a_k has 1e-6 added to its denominator.
    * Eigen-CAM does not centre A, as in the paper; there A is centred, and the sign is left to
      chance. Here the map sums to 0 or more before its ReLU.
    * Score-CAM's baseline is the same for all channels, so the softmax does without it. There
      masks are resized with aligned corners; here as in the authors' code.

    Raises InputError for an unknown method, a layer that `find_layer` refuses, and what
    `class_score` refuses; for a score of another shape than (N,), and a chunk below one.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    require_least("chunk", chunk, 1)
    found = find_layer(model, variables, images, layer, fields)
    images = jnp.asarray(images)

    def scored(outputs: Any, target: Score) -> Array:
        scores = target(outputs)
        if jnp.shape(scores) != (len(images),):
            raise InputError(
                f"score=... makes {jnp.shape(scores)} of the outputs for {len(images)} images: "
                f"let it return one number for each, ({len(images)},)."
            )
        return scores

    if method in _BY_GRADIENT:

        def total(added: Array) -> tuple[Array, Array]:
            outputs, maps = apply_with(model, variables, images, found, fields, added=added)
            return jnp.sum(scored(outputs, score or class_score(outputs, classes))), maps

        zeros = jnp.zeros(found.output.shape, found.output.dtype)
        gradients, maps = jax.grad(total, has_aux=True)(zeros)
        maps, gradients = maps.astype(jnp.float32), gradients.astype(jnp.float32)
        return jax.nn.relu(_BY_GRADIENT[method](maps, gradients))

    outputs, maps = apply_with(model, variables, images, found, fields)
    maps = maps.astype(jnp.float32)
    if method == "eigen_cam":
        return jax.nn.relu(_eigen_cam(maps))
    target = score or class_score(outputs, classes)

    def masked_score(mask: Array) -> Array:
        heat = heat_maps(mask, images.shape[1:3])[..., None].astype(images.dtype)
        return scored(model.apply(variables, images * heat, **fields), target)

    scores = lax.map(masked_score, jnp.moveaxis(maps, -1, 0), batch_size=min(chunk, maps.shape[-1]))
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=0)
    return jax.nn.relu(jnp.einsum("nhwk,kn->nhw", maps, weights, precision=lax.Precision.HIGHEST))


def heat_maps(maps: Array, size: Sequence[int]) -> Array:
    """(N, h, w) -> (N, *size): resized bilinearly, then each scaled to go from 0 to 1.

    A map with the same value everywhere becomes 0.
    """
    maps = maps - jnp.min(maps, axis=(1, 2), keepdims=True)
    resized = resize_bilinear(maps[..., None], size)[..., 0]
    resized = resized - jnp.min(resized, axis=(1, 2), keepdims=True)
    span = jnp.max(resized, axis=(1, 2), keepdims=True)
    return resized / jnp.where(span == 0, 1, span)


def _grad_cam(maps: Array, gradients: Array) -> Array:
    return _weighted(maps, jnp.mean(gradients, axis=(1, 2)))


def _grad_cam_plus_plus(maps: Array, gradients: Array) -> Array:
    sums = jnp.sum(maps, axis=(1, 2), keepdims=True)
    # g^2 / (2 g^2 + s g^3), without the powers that float32 has no room for.
    below = 2 + sums * gradients
    factors = jnp.where(below == 0, 0, 1 / jnp.where(below == 0, 1, below))
    return _weighted(maps, jnp.sum(factors * jax.nn.relu(gradients), axis=(1, 2)))


def _layer_cam(maps: Array, gradients: Array) -> Array:
    return jnp.sum(jax.nn.relu(gradients) * maps, axis=-1)


def _eigen_cam(maps: Array) -> Array:
    count, height, width, channels = maps.shape
    left, values, _ = jnp.linalg.svd(
        maps.reshape(count, height * width, channels), full_matrices=False
    )
    projected = (left[:, :, 0] * values[:, :1]).reshape(count, height, width)
    total = jnp.sum(projected, axis=(1, 2), keepdims=True)
    return jnp.where(total < 0, -projected, projected)


def _weighted(maps: Array, weights: Array) -> Array:
    """The sum of the maps' channels, each times its weight in (N, C)."""
    return jnp.einsum("nhwc,nc->nhw", maps, weights, precision=lax.Precision.HIGHEST)


_BY_GRADIENT: dict[str, Callable[[Array, Array], Array]] = {
    "grad_cam": _grad_cam,
    "grad_cam_plus_plus": _grad_cam_plus_plus,
    "layer_cam": _layer_cam,
}
METHODS = (*_BY_GRADIENT, "eigen_cam", "score_cam")

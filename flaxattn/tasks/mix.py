"""Mixup and CutMix, on the device: they mix a batch with itself, whichever processes hold it."""

import jax
import jax.numpy as jnp
from jax import Array


def mix(
    key: Array, images: Array, targets: Array, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[Array, Array]:
    """The batch mixed with itself shifted by one, as one of the two rules says.

    With both alphas above zero each is applied to every other batch on average; a rule whose alpha
    is zero is off. images (N, H, W, C), targets (N, K), the same shapes back. One share for the
    whole batch, as in the papers. Shifting by one moves one image between neighbouring devices,
    where a random pairing would move them all.
    """
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    key, choice_key = jax.random.split(key)
    if mixup_alpha and cutmix_alpha:
        return jax.lax.cond(
            jax.random.bernoulli(choice_key),
            lambda: mixup(key, images, targets, mixup_alpha),
            lambda: cutmix(key, images, targets, cutmix_alpha),
        )
    if mixup_alpha:
        return mixup(key, images, targets, mixup_alpha)
    return cutmix(key, images, targets, cutmix_alpha)


def mixup(key: Array, images: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """x = s x_i + (1 - s) x_j, the targets likewise, s ~ Beta(alpha, alpha).

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412.
    """
    share = jax.random.beta(key, alpha, alpha, dtype=jnp.float32)
    return _blend(images, share.astype(images.dtype)), _blend(targets, share)


def cutmix(key: Array, images: Array, targets: Array, alpha: float) -> tuple[Array, Array]:
    """A box of x_j replaces the same box of x_i; the targets share by area.

    The box has (1 - s) of the area, s ~ Beta(alpha, alpha), its centre is uniform, and what lies
    outside the image is cut off; the targets take the area that is left (Yun et al., "CutMix",
    ICCV 2019, arXiv:1905.04899, Section 3.1).
    """
    share_key, y_key, x_key = jax.random.split(key, 3)
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32))
    inside_y = _interval(y_key, height, side)
    inside_x = _interval(x_key, width, side)
    box = inside_y[None, :, None, None] & inside_x[None, None, :, None]
    mixed = jnp.where(box, jnp.roll(images, 1, axis=0), images)
    return mixed, _blend(targets, 1 - jnp.mean(box, dtype=jnp.float32))


def _interval(key: Array, length: int, share: Array) -> Array:
    """Which of `length` pixels lie in an interval of `share` of them about a uniform centre."""
    centre = jax.random.randint(key, (), 0, length, dtype=jnp.int32)
    half = jnp.round(share * length).astype(jnp.int32) // 2
    pixels = jnp.arange(length, dtype=jnp.int32)
    return (pixels >= centre - half) & (pixels < centre + half)


def _blend(values: Array, share: Array) -> Array:
    return share * values + (1 - share) * jnp.roll(values, 1, axis=0)

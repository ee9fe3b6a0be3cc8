"""Non-maximum suppression with static shapes."""

import jax.numpy as jnp
from jax import Array, lax

from flaxattn.models.detection.boxes import iou


def nms(boxes: Array, *, threshold: float, valid: Array, groups: Array | None = None) -> Array:
    """Which boxes stay: (K,), bool. Exactly the greedy algorithm, as in torchvision.

    A box goes if its IoU with a better one that stays is above `threshold`.

    Args:
        boxes: (K, 4), the best first.
        valid: (K,), bool; the others neither stay nor suppress any.
        groups: (K,), such as classes; boxes of different groups do not suppress each other.

    What the greedy algorithm keeps is the one set with keep_i = valid_i and no kept j < i that
    overlaps i. It is found by applying this rule to all boxes at once until nothing changes. After
    n rounds the first n boxes are settled at the latest; of detectors' boxes all are after four to
    seven. The K x K overlaps take K^2 bytes.
    """
    order = jnp.arange(len(boxes))
    suppresses = (iou(boxes, boxes) > threshold) & (order[:, None] < order[None, :])
    if groups is not None:
        suppresses &= groups[:, None] == groups[None, :]

    def apply_rule(state: tuple[Array, Array]) -> tuple[Array, Array]:
        before, _ = state
        keep = valid & ~jnp.any(suppresses & before[:, None], axis=0)
        return keep, jnp.any(keep != before)

    keep, _ = lax.while_loop(lambda state: state[1], apply_rule, (valid, jnp.any(valid)))
    return keep

"""PSANet, DANet and CCNet by their authors' names, beside PyTorch and beside four loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import InputError
from flaxattn.models.segmentation import PSAHead, create_segmenter
from tests.models.segmentation.parity import BOUND, calibrated, check_eval
from tests.torch_reference.segmenters import SIZES, CCNet, DANet, PSANet

SMALL = {"stage_sizes": SIZES}


def test_psanet_is_the_authors():
    model = create_segmenter(
        "psanet_resnet50", 5, backbone=SMALL, head={"hidden": 8, "features": 16}
    )
    # 33x17 pixels are 5x3 positions, shrunk 3x2.
    check_eval(model, calibrated(PSANet(5, (5, 3), 8, 16), (33, 17)), (33, 17), naming="semseg")


def test_ccnet_is_the_authors():
    head = {"features": 16}
    model = create_segmenter("ccnet_resnet50", 5, backbone=SMALL, head=head, aux=head)
    check_eval(model, calibrated(CCNet(5, 16, 16), (33, 25)), (33, 25), naming="ccnet")


def test_danet_is_the_authors():
    model = create_segmenter("danet_resnet50", 5, backbone=SMALL)
    check_eval(model, calibrated(DANet(5), (33, 26)), (33, 26), naming="danet")


def context_in_loops(logits, values, mask, branch):
    """For each target the mean of all sources' values, with the logits of offsets in the mask."""
    rows, columns, _ = values.shape
    positions = list(itertools.product(range(rows), range(columns)))
    context = np.zeros_like(values)
    for i, j in positions:
        energy = np.zeros((rows, columns))
        for k, m in positions:
            (y, x), (v, u) = ((i, j), (k, m)) if branch == "collect" else ((k, m), (i, j))
            row, column = v - y + (mask[0] - 1) // 2, u - x + (mask[1] - 1) // 2
            if 0 <= row < mask[0] and 0 <= column < mask[1]:
                energy[k, m] = logits[y, x].reshape(mask)[row, column]
        weights = np.exp(energy) / np.exp(energy).sum()
        for k, m in positions:
            context[i, j] += weights[k, m] * values[k, m]
    return context


def enlarged(x, size):
    """Bilinearly, corners on corners."""
    for axis, new in enumerate(size):
        at = np.linspace(0, x.shape[axis] - 1, new)
        x = np.apply_along_axis(lambda v, at=at: np.interp(at, np.arange(len(v)), v), axis, x)
    return x


@pytest.mark.parametrize("mask", [None, (3, 5)])
def test_the_psa_head_is_four_loops(mask):
    head = PSAHead(num_classes=3, hidden=4, features=6, mask_size=mask, param_dtype=jnp.float64)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7, 8))
    with jax.enable_x64(True):
        shapes = jax.eval_shape(head.init, jax.random.key(0), x[None])
        variables = jax.tree.map(lambda leaf: rng.uniform(0.2, 1, leaf.shape) - 0.3, shapes)
        variables["batch_stats"] = jax.tree.map(np.square, variables["batch_stats"])
        ours = jax.jit(head.apply)(variables, x[None])[0]

    def layer(x, group, conv, norm):
        parameters = variables["params"][group]
        statistics = variables["batch_stats"][group][norm]
        kernel = parameters[conv]["kernel"]
        around = kernel.shape[0] // 2
        padded = np.pad(x, ((around, around), (around, around), (0, 0)))
        y = sum(
            padded[i : i + x.shape[0], j : j + x.shape[1]] @ kernel[i, j]
            for i, j in np.ndindex(kernel.shape[:2])
        )
        y = (y - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
        return np.maximum(0, y * parameters[norm]["scale"] + parameters[norm]["bias"])

    contexts = []
    for branch, suffix in (("collect", ""), ("distribute", "_p")):
        small = layer(x, "psa", f"reduce{suffix}_0", f"reduce{suffix}_1")[::2, ::2]
        predictors = layer(small, "psa", f"attention{suffix}_0", f"attention{suffix}_1")
        logits = predictors @ variables["params"]["psa"][f"attention{suffix}_3"]["kernel"][0, 0]
        contexts.append(context_in_loops(logits, small, mask or (5, 7), branch))
    context = layer(np.concatenate(contexts, axis=-1), "psa", "proj_0", "proj_1")
    y = np.concatenate([x, enlarged(context, x.shape[:2])], axis=-1)
    y = layer(y, "cls", "conv", "bn")
    score = variables["params"]["cls"]["score"]
    expected = y @ score["kernel"][0, 0] + score["bias"]
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=BOUND * np.abs(expected).max())


def test_psanets_parameters_are_for_one_size():
    head = PSAHead(num_classes=3, hidden=4)
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 5, 7, 8)))
    with pytest.raises(InputError, match="made for a map of another size"):
        jax.eval_shape(head.apply, shapes, jnp.zeros((1, 7, 7, 8)))
    with pytest.raises(InputError, match="does not give a map of 4x7 back"):
        jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 4, 7, 8)))

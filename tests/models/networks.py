"""Whole networks beside their references: shapes of all weights, and logits in eval mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from flaxattn import weights
from tests.attention import parity
from tests.models.test_resnet import LOGITS, images

X = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)


@functools.cache
def shapes_of(model, x=X):
    """Shapes of the variables; no array is made."""
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), x)


def check_names(model, shapes, references):
    """Every weight has its reference's name and shape, and the features their channels."""
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    arrays = jax.tree.map(lambda leaf: np.broadcast_to(False, leaf.shape), shapes)
    assert references
    for naming, reference in references.items():
        theirs = {key: tuple(tensor.shape) for key, tensor in reference.state_dict().items()}
        theirs = {key: shape for key, shape in theirs.items() if "num_batches" not in key}
        ours = weights.to_torch(arrays, naming, module=model)
        assert {key: array.shape for key, array in ours.items()} == theirs
        assert count == sum(parameter.numel() for parameter in reference.parameters())
        if naming == "timm":
            info = reference.feature_info
            assert list(model.feature_channels) == [level["num_chs"] for level in info]
            assert list(model.feature_strides) == [level["reduction"] for level in info]


def load_and_back(model, reference, shape, naming):
    """The reference's weights as variables; made torch's again they are the same bit for bit."""
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    variables = weights.load(model, state, shape, naming)
    back = weights.to_torch(variables, naming, module=model)
    assert back.keys() == {key for key in state if "num_batches" not in key}
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, state[key])
    return variables


def check_logits(record_property, row, model, reference, *, size, dtype, naming):
    """Logits of one image in eval mode, with random weights and random running statistics."""
    parity.randomise(reference, np.random.default_rng(0))
    reference = reference.to(getattr(torch, dtype)).eval()
    x = images(size, batch=1).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        model = model.clone(param_dtype=jnp.dtype(dtype))
        variables = load_and_back(model, reference, x.shape, naming)
        ours = jax.jit(model.apply)(variables, x)
        with torch.no_grad():
            theirs = reference(torch.tensor(parity.to_channels_first(x))).numpy()
        error = parity.difference(ours, theirs)
    record_property("parity", (row, f"logits {dtype}", error, LOGITS[dtype]))
    assert error <= LOGITS[dtype], f"{row}: logits differ by {error:.1e}"

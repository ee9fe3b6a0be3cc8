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


def torch_shapes(network):
    """Shapes of a torch network's weights, by their keys."""
    state = network.state_dict().items()
    return {key: tuple(tensor.shape) for key, tensor in state if "num_batches" not in key}


def our_shapes(model, naming, shapes=None):
    """Those of what `to_torch` would write; of single bytes, for some have a billion numbers."""
    shapes = shapes_of(model) if shapes is None else shapes
    arrays = jax.tree.map(lambda leaf: np.broadcast_to(False, leaf.shape), shapes)
    return {key: a.shape for key, a in weights.to_torch(arrays, naming, module=model).items()}


def check_names(model, shapes, references):
    """Every weight has its reference's name and shape, and the features their channels."""
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert references
    for naming, reference in references.items():
        assert our_shapes(model, naming, shapes) == torch_shapes(reference)
        assert count == sum(parameter.numel() for parameter in reference.parameters())
        if naming == "timm":
            check_features(model, reference)


def check_features(model, reference):
    """The maps of `features` are those that timm offers, by channels and strides."""
    info = reference.feature_info
    assert list(model.feature_channels) == [level["num_chs"] for level in info]
    assert list(model.feature_strides) == [level["reduction"] for level in info]


def load_and_back(model, reference, shape, naming):
    """The reference's weights as variables; made torch's again they are the same bit for bit."""
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    variables = weights.load(model, state, shape, naming)
    back = weights.to_torch(variables, naming, module=model)
    assert back.keys() == torch_shapes(reference).keys()
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, state[key], strict=True, err_msg=key)
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

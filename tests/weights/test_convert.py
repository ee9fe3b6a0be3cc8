import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxattn import BatchNorm, Conv, weights
from flaxattn.attention import CBAM, SqueezeExcite
from flaxattn.errors import InputError
from flaxattn.models import create_model
from flaxattn.weights.naming import torch_name

SHAPE = (1, 8, 8, 32)
SE = {
    "fc.0.weight": np.arange(64, dtype=np.float32).reshape(2, 32),
    "fc.2.weight": np.arange(64, dtype=np.float32).reshape(32, 2),
}
BIAS_FREE = SqueezeExcite(use_bias=False)


class Names(nn.Module):
    """One of each kind of parameter, with indices to fold."""

    @nn.compact
    def __call__(self, x, train=False):
        x = Conv(4, 3, name="layer1_0")(x)
        x = BatchNorm(name="layer1_1")(x, train)
        gamma = self.param("gamma", nn.initializers.zeros, (1,))
        return gamma[0] * nn.Dense(3, name="fc")(x)


def test_names_and_layouts():
    rng = np.random.default_rng(0)
    tensors = {
        "layer1.0.weight": rng.normal(size=(4, 2, 3, 3)),
        "layer1.0.bias": rng.normal(size=4),
        "layer1.1.weight": rng.normal(size=4),
        "layer1.1.bias": rng.normal(size=4),
        "layer1.1.running_mean": rng.normal(size=4),
        "layer1.1.running_var": rng.normal(size=4),
        "layer1.1.num_batches_tracked": np.asarray(7),
        "fc.weight": rng.normal(size=(3, 4)),
        "fc.bias": rng.normal(size=3),
        "gamma": rng.normal(size=1),
    }
    tensors = {key: value.astype(np.float32) for key, value in tensors.items()}
    variables = weights.load(Names(), tensors, (1, 5, 5, 2))
    params, statistics = variables["params"], variables["batch_stats"]
    kernel = params["layer1_0"]["kernel"]
    assert kernel[2, 1, 0, 3] == tensors["layer1.0.weight"][3, 0, 2, 1]
    np.testing.assert_array_equal(params["fc"]["kernel"], tensors["fc.weight"].T)
    np.testing.assert_array_equal(params["layer1_1"]["scale"], tensors["layer1.1.weight"])
    np.testing.assert_array_equal(statistics["layer1_1"]["var"], tensors["layer1.1.running_var"])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))

    back = weights.to_torch(variables)
    del tensors["layer1.1.num_batches_tracked"]
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)
        assert back[key].flags.c_contiguous


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("layer1_0", "conv1", "kernel"), "layer1.0.conv1.weight"),
        (("blocks_2_10", "bn1", "mean"), "blocks.2.10.bn1.running_mean"),
        (("gate_1_conv_2", "bias"), "gate_1_conv.2.bias"),
        (("conv2d", "bias"), "conv2d.bias"),
    ],
)
def test_trailing_indices_leave_their_parents(path, key):
    assert torch_name(path, ()).key == key


def test_naming_is_found_by_itself():
    named = weights.load(BIAS_FREE, SE, SHAPE, naming="articles")
    found = weights.load(BIAS_FREE, SE, SHAPE)
    jax.tree.map(np.testing.assert_array_equal, found, named)


def test_naming_by_table():
    tensors = {"squeeze.weight": SE["fc.0.weight"], "excite.weight": SE["fc.2.weight"]}
    table = (("squeeze", "fc1", "linear"), ("excite", "fc2", "linear"))
    variables = weights.load(BIAS_FREE, tensors, SHAPE, table)
    back = weights.to_torch(variables, table)
    assert back["squeeze.weight"].shape == (2, 32)
    np.testing.assert_array_equal(back["excite.weight"], tensors["excite.weight"])


def test_a_table_named_without_its_module():
    variables = weights.load(BIAS_FREE, SE, SHAPE)
    with pytest.raises(InputError, match=r"'articles' is a name that the module .* pass module="):
        weights.to_torch(variables, "articles")


def test_unknown_naming():
    with pytest.raises(InputError, match="unknown naming of SqueezeExcite 'article': did you mean"):
        weights.load(BIAS_FREE, SE, SHAPE, naming="article")


def test_everything_that_is_wrong_is_listed():
    tensors = {"fc.0.weight": np.zeros((3, 32)), "fc.9.weight": np.zeros(5)}
    with pytest.raises(InputError) as error:
        weights.load(BIAS_FREE, tensors, SHAPE, naming="articles")
    assert "do not fit SqueezeExcite" in str(error.value)
    assert "misshapen: fc.0.weight (3, 32) for params/fc1/kernel (1, 1, 32, 2)" in str(error.value)
    assert "missing: fc.2.weight for params/fc2/kernel (1, 1, 2, 32)" in str(error.value)
    assert "unexpected: fc.9.weight (5,)" in str(error.value)


def test_a_transposed_matrix_is_refused():
    tensors = {key: tensor.T for key, tensor in SE.items()}
    with pytest.raises(InputError, match=r"misshapen: fc\.0\.weight \(32, 2\)"):
        weights.load(BIAS_FREE, tensors, SHAPE, naming="articles")


def test_axes_of_one_count_where_there_are_equally_many():
    layer = Conv(5, (5, 1), groups=5, use_bias=False)  # (5, 1, 1, 5), and torch's (5, 1, 5, 1)
    with pytest.raises(InputError, match=r"misshapen: weight \(5, 1, 1, 5\)"):
        weights.load(layer, {"weight": np.zeros((5, 1, 1, 5))}, (1, 8, 8, 5))
    weights.load(layer, {"weight": np.zeros((5, 1, 5, 1))}, (1, 8, 8, 5))


def test_arrays_take_the_modules_dtype():
    with jax.enable_x64(True):
        module = SqueezeExcite(use_bias=False, param_dtype=jnp.float64)
        variables = weights.load(module, SE, SHAPE)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float64")}


def test_renames_reach_layers_inside_a_model():
    model = create_model("resnet10", width=16, attention={"name": "cbam", "variant": "official"})
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    tensors = weights.to_torch(variables, "official", module=model)
    assert tensors["layer1.0.se.ChannelGate.mlp.1.weight"].shape == (1, 16)
    assert "layer2.0.downsample.1.running_var" in tensors
    back = weights.load(model, tensors, (1, 32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_two_arrays_of_one_name():
    variables = CBAM().init(jax.random.key(0), jnp.zeros(SHAPE))
    with pytest.raises(InputError, match=r"two arrays would be called fc\.weight"):
        weights.to_torch(variables, (("fc", "channel.fc1"), ("fc", "channel.fc2")))


class Layouts(nn.Module):
    """One array of each layout that a rename can state."""

    @nn.compact
    def __call__(self, x, train=False):
        zeros = nn.initializers.zeros
        self.param("kernels", zeros, (3, 5, 4, 2, 6))
        self.param("experts", zeros, (3, 5, 4, 2, 6))
        self.param("gate", zeros, (6,))
        norm = nn.LayerNorm(name="mlp_1")(x)
        return Conv(5, name="out")(Conv(6, name="fc")(norm))


LAYOUTS = (
    ("weight", "kernels", "stacked"),
    ("experts.weight", "experts", "flat"),
    ("alpha", "gate", "1n11"),
    ("mlp.1", "mlp_1", "n11"),
    ("head", "fc", "linear"),
    ("tail_W", "out.kernel", "matrix"),
    ("tail_b", "out.bias"),
    ("grid.index", "", "derived"),
)


def test_layouts_that_renames_state():
    rng = np.random.default_rng(0)
    shapes = {"weight": (3, 6, 2, 5, 4), "experts.weight": (3, 240), "alpha": (1, 6, 1, 1)}
    shapes |= {"mlp.1.weight": (2, 1, 1), "mlp.1.bias": (2, 1, 1)}
    shapes |= {"head.weight": (6, 2), "head.bias": (6,), "tail_W": (6, 5), "tail_b": (5,)}
    tensors = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    derived = {"grid.index": np.arange(9)}
    params = weights.load(Layouts(), tensors | derived, (1, 5, 5, 2), LAYOUTS)["params"]

    assert params["kernels"][2, 4, 1, 0, 3] == tensors["weight"][2, 3, 0, 4, 1]
    stacked = tensors["experts.weight"].reshape(3, 6, 2, 5, 4)
    assert params["experts"][2, 4, 1, 0, 3] == stacked[2, 3, 0, 4, 1]
    assert params["fc"]["kernel"][0, 0, 1, 4] == tensors["head.weight"][4, 1]
    assert params["out"]["kernel"][0, 0, 4, 1] == tensors["tail_W"][4, 1]

    back = weights.to_torch({"params": params}, LAYOUTS)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)
        assert back[key].flags.c_contiguous


def test_a_derived_tensor_of_another_name_is_unexpected():
    tensors = weights.to_torch(Layouts().init(jax.random.key(0), jnp.zeros((1, 5, 5, 2))), LAYOUTS)
    with pytest.raises(InputError, match=r"unexpected: rid\.index"):
        weights.load(Layouts(), tensors | {"rid.index": np.arange(9)}, (1, 5, 5, 2), LAYOUTS)

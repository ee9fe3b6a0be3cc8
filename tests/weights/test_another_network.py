"""Weights of a network that has the same tensors and computes something else are refused."""

import jax
import numpy as np
import pytest

from flaxattn import InputError, create_attention, create_model, initialise, weights
from flaxattn.weights import load_pretrained
from tests.torch_reference import non_local

SHAPE = (1, 64, 64, 3)


def saved(name, folder, **config):
    """A directory as the hub's, of a network with random weights under torch's names."""
    model = create_model(name)
    variables = initialise(model, jax.random.key(0), SHAPE)
    naming = next(iter(model.namings))
    folder.mkdir(exist_ok=True)
    state = weights.to_torch(variables, naming, module=model)
    weights.write(folder / "model.safetensors", state, config=config)
    return folder


@pytest.mark.parametrize(
    ("stated", "name", "differs"),
    [
        ("tf_efficientnet_b0", "efficientnet_b0", "norm, padding"),
        ("resnetblur18", "resnet18", "downsampling"),
        ("mobilenetv3_small_100", "mobilenet_v3_small", "norm"),
        ("seresnet18", "legacy_seresnet18", None),
    ],
)
def test_the_configs_architecture_is_the_models(tmp_path, stated, name, differs):
    source = saved(stated, tmp_path / "w", architecture=stated)
    weights.load(create_model(stated), source, SHAPE)
    if differs is None:  # other tensors too
        with pytest.raises(InputError, match=f"these look like the weights of {stated}"):
            weights.load(create_model(name), source, SHAPE)
        return
    with pytest.raises(
        InputError,
        match=rf"config says {stated}, which differs in {differs}; use create_model\('{stated}'\)",
    ):
        weights.load(create_model(name), source, SHAPE)
    load_pretrained(create_model(name), source, SHAPE, other_architecture=True)


def test_what_a_user_of_weights_chooses_is_no_other_architecture(tmp_path):
    source = saved("resnet18", tmp_path / "w", architecture="resnet18")
    fields = {"dropout": 0.5, "drop_path": 0.1, "output_stride": 8, "global_pool": "max"}
    weights.load(create_model("resnet18", **fields), source, SHAPE)
    model = create_model("resnet18", num_classes=3, attention="se")
    load_pretrained(model, source, SHAPE, allow_new=("head", "attention"))


def test_a_config_that_is_not_the_tensors_says_nothing(tmp_path):
    """A narrower network was saved with the name of the one that it was made from."""
    model = create_model("resnet10", width=8)
    state = weights.to_torch(initialise(model, jax.random.key(0), SHAPE))
    weights.write(tmp_path / "x.safetensors", state, config={"architecture": "resnet10"})
    weights.load(model, tmp_path / "x.safetensors", SHAPE)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("mobilenet_v3_small", "mobilenetv3_small_100"),
        pytest.param("efficientnet_v2_s", "efficientnetv2_s", marks=pytest.mark.slow),
    ],
)
def test_timms_names_are_not_of_torchvisions_network(name, theirs):
    model, other = create_model(name), create_model(theirs)
    variables = initialise(other, jax.random.key(0), SHAPE)
    state = weights.to_torch(variables, "timm", module=other)
    with pytest.raises(InputError, match=f"names are those of timm's {theirs}, which computes"):
        weights.load(model, state, SHAPE)
    load_pretrained(model, state, SHAPE, other_architecture=True)
    weights.load(model, weights.to_torch(variables, "torchvision", module=model), SHAPE)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_that_are_not_finite_are_refused(number, dtype):
    model = create_model("resnet10", width=8, num_classes=5)
    variables = initialise(model, jax.random.key(0), SHAPE)
    state = {k: np.array(v, dtype) for k, v in weights.to_torch(variables).items()}
    weights.load(model, state, SHAPE)
    state["layer1.0.bn1.weight"][3] = number
    with pytest.raises(
        InputError,
        match=r"infinite numbers are no weights.*:\n  damaged: layer1.0.bn1.weight has 1 NaN",
    ):
        weights.load(model, state, SHAPE)


@pytest.mark.parametrize(
    ("given", "fields", "advice"),
    [
        (non_local.AlexHex7(32, sub_sample=True), {}, r"NonLocal\.alexhex7\(\.\.\.\) has exactly"),
        (non_local.AlexHex7(32, sub_sample=False), {"sub_sample": "after"}, "missing: g.0.bias"),
        (non_local.AlexHex7(32, sub_sample=True), {"sub_sample": "before"}, r"NonLocal\.alexhex7"),
    ],
)
def test_a_pool_that_the_fields_do_not_have_is_refused(given, fields, advice):
    """With it the same weights are another function."""
    state = {key: tensor.numpy() for key, tensor in given.state_dict().items()}
    with pytest.raises(InputError, match=advice):
        weights.load(create_attention("non_local", **fields), state, (1, 8, 8, 32))

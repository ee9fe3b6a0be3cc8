"""Checkpoints of a network that is not quite the one at hand, and of quite another."""

from typing import ClassVar

import jax
import numpy as np
import pytest
import torch
from flax import linen as nn

from flaxattn import Conv, InputError, create_attention, create_model, initialise, weights
from flaxattn.weights import architecture, load_pretrained
from tests.torch_reference.torchvision_shim import timm

SHAPE = (1, 32, 32, 3)
TINY = {"width": 8, "num_classes": 5}
SE = {"name": "se", "reduction": 4, "stages": (3, 4)}


def tiny(**fields):
    return create_model("resnet10", **TINY | fields)


def state_of(model, shape=SHAPE, seed=0):
    """A torch state dict of random numbers."""
    rng = np.random.default_rng(seed)
    return weights.to_torch(
        jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
            weights.abstract_variables(model, shape),
        )
    )


STATE = state_of(tiny())


def flat(variables):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(variables)
    }


def assert_same_but(layers, loaded, whole):
    """Every array is the checkpoint's, but for those of the fresh `layers`."""
    for path, array in flat(whole).items():
        if not any(f"/{layer}/" in f"/{path}" for layer in layers):
            np.testing.assert_array_equal(flat(loaded)[path], array, strict=True)


def test_the_very_module_needs_nothing_new():
    loaded = load_pretrained(tiny(), STATE, SHAPE, allow_new=("head", "attention"))
    assert loaded[1:] == ((), (), "own")
    assert_same_but((), loaded.variables, weights.load(tiny(), STATE, SHAPE))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrapped_module(prefix, tmp_path):
    state = {f"{prefix}{key}": tensor for key, tensor in STATE.items()}
    np.savez(tmp_path / "wrapped.npz", **state)
    for source in (state, tmp_path / "wrapped.npz"):
        assert_same_but((), weights.load(tiny(), source, SHAPE), weights.load(tiny(), STATE, SHAPE))


def test_a_head_of_another_size_is_new():
    model = tiny(num_classes=7)
    loaded = load_pretrained(model, STATE, SHAPE, allow_new=("head",), seed=3)
    assert loaded.fresh == ("fc",)
    assert loaded.left_out == ("fc.bias", "fc.weight")
    assert_same_but(("fc",), loaded.variables, weights.load(tiny(), STATE, SHAPE))
    expected = initialise(model, jax.random.key(3), SHAPE)["params"]["fc"]
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"]["fc"], expected)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded.variables))
    assert loaded.variables["params"]["fc"]["kernel"].std() > 0


@pytest.mark.parametrize("missing", ["fc.weight", "fc.bias"])
def test_a_head_is_new_as_a_whole(missing):
    state = {key: tensor for key, tensor in STATE.items() if key != missing}
    loaded = load_pretrained(tiny(), state, SHAPE, allow_new=("head",))
    assert loaded.fresh == ("fc",)
    assert loaded.left_out == tuple({"fc.weight", "fc.bias"} - {missing})
    assert not np.array_equal(loaded.variables["params"]["fc"]["kernel"], STATE["fc.weight"].T)


class Backbone(nn.Module):
    """Says itself what its last layer is called."""

    num_classes: int
    head_name: ClassVar[str] = "head/fc"

    @nn.compact
    def __call__(self, x, train=False):
        return Head(self.num_classes, name="head")(Conv(4, 3, name="fc")(x))


class Head(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="norm")(x.mean((1, 2)))
        return nn.Dense(self.num_classes, name="fc")(x)


def test_a_head_has_the_name_that_the_model_says():
    state = state_of(Backbone(5))
    loaded = load_pretrained(Backbone(3), state, SHAPE, allow_new=("head",))
    assert loaded.fresh == ("head/fc",)
    assert loaded.left_out == ("head.fc.bias", "head.fc.weight")
    assert_same_but(("head/fc",), loaded.variables, weights.load(Backbone(5), state, SHAPE))


def test_no_head():
    loaded = load_pretrained(tiny(num_classes=0), STATE, SHAPE, allow_new=("head",))
    assert loaded.fresh == ()
    assert loaded.left_out == ("fc.bias", "fc.weight")
    assert "fc" not in loaded.variables["params"]


@pytest.mark.parametrize("classes", [0, 7])
def test_a_head_of_another_size_is_an_error_that_says_what_to_do(classes):
    sentence = r"only the head differs, so make .* \(num_classes=5\), or .* allow_new=\('head',\)"
    with pytest.raises(InputError, match=sentence) as error:
        weights.load(tiny(num_classes=classes), STATE, SHAPE)
    kind = "misshapen" if classes else "unexpected"
    assert f"{kind}: fc.weight (5, 64)" in str(error.value)


def test_inserted_attention_is_new():
    model = tiny(attention=SE)
    loaded = load_pretrained(model, STATE, SHAPE, allow_new=("attention",))
    assert loaded.fresh == ("layer3_0/se", "layer4_0/se")
    assert loaded.left_out == ()
    assert_same_but(("se",), loaded.variables, weights.load(tiny(), STATE, SHAPE))
    kernel = loaded.variables["params"]["layer3_0"]["se"]["fc1"]["kernel"]
    assert kernel.shape == (1, 1, 32, 8)
    assert kernel.std() > 0


def test_inserted_attention_and_a_new_head():
    bam = {"name": "bam", "reduction": 4}
    context = {"name": "global_context", "reduction": 4}
    model = tiny(attention=bam, num_classes=2, context=context)
    loaded = load_pretrained(model, STATE, SHAPE, allow_new=("attention", "head"))
    slots = [f"layer{i}_0/{slot}" for i in range(1, 5) for slot in ("context", "se")]
    assert loaded.fresh == ("fc", *slots)
    assert_same_but(("fc", "se", "context"), loaded.variables, weights.load(tiny(), STATE, SHAPE))


def test_inserted_attention_needs_leave():
    with pytest.raises(InputError, match=r"only attention .* allow_new=\('attention',\)") as error:
        weights.load(tiny(attention=SE), STATE, SHAPE)
    assert str(error.value).count("missing: layer3.0.se.") == 4


@pytest.mark.parametrize("lost", ["layer1.0.bn1.weight", "layer3.0.se.fc1.weight"])
def test_anything_else_that_is_missing_is_an_error(lost):
    model = tiny(attention=SE)
    state = {key: tensor for key, tensor in state_of(model).items() if key != lost}
    with pytest.raises(InputError, match=f"missing: {lost}"):
        load_pretrained(model, state, SHAPE, allow_new=("attention", "head"))


def test_attention_of_the_checkpoint_is_not_dropped():
    state = state_of(tiny(attention=SE))
    with pytest.raises(InputError, match=r"unexpected: layer3\.0\.se\.fc1\.bias"):
        load_pretrained(tiny(), state, SHAPE, allow_new=("attention", "head"))
    other = tiny(attention=SE | {"reduction": 8})
    with pytest.raises(InputError, match=r"misshapen: layer3\.0\.se\.fc1\.bias \(8,\)"):
        load_pretrained(other, state, SHAPE, allow_new=("attention", "head"))


def test_grey_images():
    grey = (1, 32, 32, 1)
    loaded = load_pretrained(tiny(), STATE, grey, grey=True)
    kernel = loaded.variables["params"]["conv1"]["kernel"]
    expected = timm.models.adapt_input_conv(1, torch.tensor(STATE["conv1.weight"])).numpy()
    np.testing.assert_allclose(kernel, expected.transpose(2, 3, 1, 0), rtol=0, atol=1e-6)
    assert_same_but(("conv1",), loaded.variables, weights.load(tiny(), STATE, SHAPE))
    again = load_pretrained(tiny(), weights.to_torch(loaded.variables), grey, grey=True)
    np.testing.assert_array_equal(again.variables["params"]["conv1"]["kernel"], kernel)


def test_grey_images_need_leave():
    with pytest.raises(InputError, match=r"first kernel .* grey=True"):
        weights.load(tiny(), STATE, (1, 32, 32, 1))
    with pytest.raises(InputError, match=r"grey=True is for images with one channel"):
        load_pretrained(tiny(), STATE, SHAPE, grey=True)


@pytest.mark.parametrize(
    ("name", "state", "naming", "shape"),
    [
        ("eca", {"conv.weight": (1, 1, 3)}, "official", (1, 4, 4, 256)),
        ("spatial", {"conv.weight": (1, 2, 3, 3)}, None, (1, 8, 8, 4)),
    ],
)
def test_a_kernel_of_another_size_is_not_of_grey_images(name, state, naming, shape):
    state = {key: np.ones(size, np.float32) for key, size in state.items()}
    with pytest.raises(InputError, match="misshapen") as error:
        weights.load(create_attention(name), state, shape, naming)
    assert "grey" not in str(error.value)


@pytest.mark.parametrize("shape", [(224, 224, 3), (1, 3, 32, 32, 3)])
def test_a_network_of_images_wants_four_axes(shape):
    with pytest.raises(InputError, match=r"images have four, \(N, H, W, C\)\.$") as error:
        weights.load(tiny(), STATE, shape)
    assert f"ResNet cannot have input_shape={shape} with {len(shape)} axes" in str(error.value)


def test_a_layer_may_take_other_axes():
    layer = create_attention("non_local")
    for shape in ((1, 16, 8), (1, 2, 4, 4, 8)):
        state = state_of(layer, shape)
        weights.load(layer, state, shape)
        with pytest.raises(InputError, match=r"images have four, \(N, H, W, C\):\n  missing"):
            weights.load(layer, {}, shape)
    with pytest.raises(InputError, match=r"SqueezeExcite cannot have input_shape=\(8, 8, 32\)"):
        weights.load(create_attention("se"), {}, (8, 8, 32))


def test_one_part_that_may_be_new_is_a_name():
    assert load_pretrained(tiny(num_classes=7), STATE, SHAPE, allow_new="head").fresh == ("fc",)


def test_an_unknown_part():
    with pytest.raises(InputError, match="unknown part that may be new 'heads': did you mean head"):
        load_pretrained(tiny(), STATE, SHAPE, allow_new=("heads",))


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_file_of_flax_arrays(tmp_path, suffix):
    path = tmp_path / f"flax.{suffix}"
    variables = weights.load(tiny(), STATE, SHAPE)
    weights.write(path, variables)
    assert "params/layer1_0/conv1/kernel" in weights.read(path)
    loaded = load_pretrained(tiny(), path, SHAPE, naming="anything")
    assert loaded.naming == "flax"
    assert_same_but((), loaded.variables, variables)
    fresh = load_pretrained(tiny(num_classes=7), path, SHAPE, allow_new=("head",))
    assert (fresh.fresh, fresh.left_out) == (("fc",), ("params/fc/bias", "params/fc/kernel"))
    grey = load_pretrained(tiny(), path, (1, 32, 32, 1), grey=True)
    kernel = variables["params"]["conv1"]["kernel"].sum(2, keepdims=True)
    np.testing.assert_allclose(grey.variables["params"]["conv1"]["kernel"], kernel, atol=1e-6)


def test_a_naming_is_reported():
    model = tiny(attention=SE | {"use_bias": False})
    state = weights.to_torch(
        jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, np.float32), weights.abstract_variables(model, SHAPE)
        ),
        "articles",
        module=model,
    )
    assert load_pretrained(model, state, SHAPE).naming == "articles"


def state_without_numbers(name, naming=None, **fields):
    model = create_model(name, **fields)
    zeros = jax.tree.map(
        lambda leaf: np.broadcast_to(np.float32(0), leaf.shape),
        weights.abstract_variables(model, SHAPE),
    )
    return weights.to_torch(zeros, naming, module=model)


@pytest.fixture
def counted(monkeypatch):
    """How many arrays the evaluated models turned out to have, each as it comes."""
    counts, really = [], architecture._count

    def count(*given):
        counts.append(really(*given))
        return counts[-1]

    monkeypatch.setattr(architecture, "_count", count)
    return counts


@pytest.mark.parametrize(
    ("model", "checkpoint", "naming"),
    [
        ("resnet50", "skresnet18", "timm"),
        ("resnet18", "legacy_seresnet18", "timm"),
        ("resnet50", "regnety_002", "timm"),
        ("resnet18", "vgg11", "torchvision"),
        ("mobilenetv3_small_100", "mobilenetv3_small_050", "timm"),
        ("mobilenetv3_small_100", "efficientnet_b0", "timm"),
        ("mobilenetv2_100", "mobilenetv2_035", "timm"),
        ("resnet18", "resnet26d", None),
    ],
)
def test_another_architecture_is_named(counted, model, checkpoint, naming):
    """By its tensors alone, of all models; hardly any other is evaluated to its end."""
    state = state_without_numbers(checkpoint, naming, num_classes=10)
    counters = {key.replace("running_mean", "num_batches_tracked") for key in state} - state.keys()
    with pytest.raises(InputError, match=f"look like the weights of {checkpoint}:\n"):
        weights.load(create_model(model), state | dict.fromkeys(counters, np.int64(7)), SHAPE)
    assert counted[-1] == len(state) - 2
    assert np.count_nonzero(counted) <= 2


def test_another_architecture_is_named_in_spite_of_new_attention():
    state = state_without_numbers("resnet18", num_classes=10, attention=SE)
    with pytest.raises(InputError, match="look like the weights of resnet18:\n"):
        weights.load(create_model("resnet50"), state, SHAPE)


def test_a_file_of_flax_arrays_is_named_too(tmp_path):
    model = create_model("resnet10")
    weights.write(tmp_path / "x.npz", weights.load(model, state_without_numbers("resnet10"), SHAPE))
    with pytest.raises(InputError, match="look like the weights of resnet10:\n"):
        weights.load(tiny(), tmp_path / "x.npz", SHAPE)


def test_the_name_in_the_path_is_tried_first(tmp_path, counted):
    """Two networks with the same tensors: the file's name says which."""
    state = state_without_numbers("resnet18", num_classes=0)
    for stem, name in (("resnetblur18-84f4748f", "resnetblur18"), ("checkpoint", "resnet18")):
        counted.clear()
        np.savez(tmp_path / f"{stem}.npz", **state)
        with pytest.raises(InputError, match=f"look like the weights of {name}:\n"):
            weights.load(tiny(), tmp_path / f"{stem}.npz", SHAPE)
        assert counted == [len(state)]


def test_the_name_in_the_config_is_tried_first(tmp_path, counted):
    state = state_without_numbers("resnet18", num_classes=0)
    weights.write(tmp_path / "resnet18.npz", state, config={"architecture": "resnetblur18"})
    with pytest.raises(InputError, match="look like the weights of resnetblur18:\n"):
        weights.load(tiny(), tmp_path / "resnet18.npz", SHAPE)
    assert counted == [len(state)]


def test_a_model_of_another_library_is_named_by_the_config(tmp_path, counted):
    weights.write(tmp_path / "x.npz", {"x": np.ones(3)}, config={"architecture": "vit_tiny"})
    with pytest.raises(InputError, match="look like the weights of vit_tiny:\n"):
        weights.load(tiny(), tmp_path / "x.npz", SHAPE)
    assert not counted
    weights.write(tmp_path / "y.npz", {"x": np.ones(3)}, config={"architecture": "x" * 5000})
    with pytest.raises(InputError, match=f"look like the weights of {'x' * 100}:\n"):
        weights.load(tiny(), tmp_path / "y.npz", SHAPE)


@pytest.mark.parametrize("config", [{}, {"architecture": "resnet50"}, {"architecture": ["x"]}])
def test_a_wrong_name_is_not_repeated(tmp_path, config):
    """Neither the file's name nor its config makes a narrower network a ResNet-50."""
    path = tmp_path / "resnet50-9c8e357.npz"
    np.savez(path, **state_without_numbers("resnet50", width=8))
    with pytest.raises(InputError, match="do not fit ResNet") as error:
        weights.load(tiny(), weights.Checkpoint(path, config), SHAPE)
    assert "look like" not in str(error.value)


def test_a_renamed_key_is_no_other_architecture():
    state = {key.replace("layer4.0.bn2.b", "layer4.0.norm.b"): t for key, t in STATE.items()}
    with pytest.raises(InputError, match=r"do not fit ResNet:\n  missing: layer4\.0\.bn2") as error:
        weights.load(tiny(), state, SHAPE)
    assert "unexpected: layer4.0.norm.bias (64,)" in str(error.value)


def test_a_model_with_some_flaws_is_itself():
    state = state_without_numbers("resnet18")
    state = {key.replace("layer4.1.bn", "layer4.1.norm"): t for key, t in state.items()}
    with pytest.raises(InputError, match=r"do not fit ResNet:\n"):
        weights.load(create_model("resnet18"), state, SHAPE)


def test_weights_like_no_model():
    with pytest.raises(InputError, match=r"do not fit ResNet:\n"):
        weights.load(tiny(), {"encoder.weight": np.zeros((3, 3), np.float32)}, SHAPE)
    with pytest.raises(InputError, match=r"do not fit ResNet:\n"):
        weights.load(tiny(), {}, SHAPE)


def test_an_error_is_short_however_much_is_wrong():
    with pytest.raises(InputError) as error:
        weights.load(create_model("resnet50"), state_of(tiny(stage_sizes=(3, 3, 3, 3))), SHAPE)
    assert len(str(error.value)) <= 600
    for kind in ("missing", "misshapen"):
        assert f"{kind}: " in str(error.value)
    assert " more" in str(error.value)


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "a.b."])
def test_a_prefix_is_named_and_taken(prefix):
    state = {f"{prefix}{key}": tensor for key, tensor in STATE.items()}
    others = {"decoder.weight": np.ones(3, np.float32)}
    with pytest.raises(InputError, match=rf"pass prefix='{prefix}'"):
        weights.load(tiny(), state | others, SHAPE)
    found = weights.load(tiny(), state | others, SHAPE, prefix=prefix)
    assert_same_but((), found, weights.load(tiny(), STATE, SHAPE))
    with pytest.raises(InputError, match=r"no tensor.s key begins with prefix=.encoder\.."):
        weights.load(tiny(), state, SHAPE, prefix="encoder.")


def test_channels_first_are_noticed():
    with pytest.raises(InputError, match=r"channels first: .*\(1, 224, 256, 3\)"):
        weights.load(tiny(), STATE, (1, 3, 224, 256))

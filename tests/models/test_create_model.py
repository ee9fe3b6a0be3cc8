"""Models by name, and what the package exports."""

import importlib.metadata
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

import flaxattn
from flaxattn import MODELS, InputError, create_model
from flaxattn.models import ResNet

# One of each class; the others, of which some have hundreds of layers, are for test-all.
FEW = ("resnet10", "resnet18", "resnet50", "legacy_seresnet18", "vgg11_bn", "mobilenetv3_small_050")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in MODELS]
)
def test_every_model_answers_logits_and_features(name):
    model = create_model(name, num_classes=7, attention="se")
    x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    logits = jax.eval_shape(model.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, method="features"), variables, x)
    assert tuple(m.shape[-1] for m in maps) == model.feature_channels


def test_config_is_all_it_takes():
    config = ConfigDict(
        {
            "name": "resnet10",
            "num_classes": 3,
            "stem": "small",
            "attention": {"name": "se", "reduction": 4, "stages": (2,), "position": "mid"},
        }
    )
    model = create_model(**config)
    assert isinstance(model, ResNet)
    assert (model.num_classes, model.stem) == (3, "small")
    assert (model.attention.stages, model.attention.position) == ((2,), "mid")
    assert model.attention.factory().reduction == 4


def test_models_can_be_static_arguments():
    model = create_model("resnet10", attention="se", context={"name": "se", "stages": [1]})
    assert hash(model) == hash(model.clone())
    assert model == model.clone()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "resnet51"}, "^unknown model 'resnet51': did you mean resnet50 or resnet"),
        ({"name": "resnet18", "atention": "se"}, "field of resnet18 'atention'.*mean attention"),
        ({"name": "resnet18", "parent": None}, "unknown field of resnet18 'parent'"),
        ({"name": "resnet18", "attention": "psa"}, "three papers"),
        ({"name": "resnet18", "width": 0}, "width=0 is below 1: use 1 or more"),
        ({"name": "resnet18", "num_classes": "10"}, "num_classes='10' must be an integer"),
        ({"name": "resnet18", "num_classes": -1}, "num_classes=-1 is below 0: use 0 or more"),
    ],
)
def test_what_cannot_be_made_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        create_model(**fields)


def test_version_is_the_distributions():
    assert flaxattn.__version__ == importlib.metadata.version("flaxattn")


def test_import_is_light_and_touches_no_device():
    code = """
import sys
import flaxattn
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
for name in ("torch", "tensorflow", "orbax", "grain", "tensorflow_datasets", "optax.losses"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "fields", "hint"),
    [
        ("resnet50", {"pretrained": True}, r"timm's: load weights with flaxattn\.weights\.load"),
        ("resnet50", {"in_chans": 1}, "leave it out: the first convolution takes as many"),
        ("resnet50", {"features_only": True}, "method='features'"),
        ("resnet50", {"out_indices": (1, 2)}, "choose from the list"),
        ("resnet50", {"drop_rate": 0.1}, "it is called dropout"),
        ("resnet50", {"gate_layer": "hard_sigmoid"}, "gate_activation"),
        ("resnet50.a1_in1k", {}, r"names weights: .*create_model\('resnet50'\)"),
        ("timm/resnet50.a1_in1k", {}, r"'timm/resnet50\.a1_in1k'"),
        ("seresnext50", {}, "did you mean seresnext50_32x4d"),
        ("ResNet50", {}, r"did you mean resnet50\b"),
    ],
)
def test_words_of_timms_get_what_is_meant(name, fields, hint):
    with pytest.raises(InputError, match=hint):
        create_model(name, **fields)


@pytest.mark.parametrize(
    ("name", "hint"), [("SE", "did you mean se or"), ("mqa", "there is none like it")]
)
def test_names_of_attention_in_capitals_and_like_no_other(name, hint):
    with pytest.raises(InputError, match=hint):
        create_model("resnet18", attention=name)

"""RegNets against timm's: parameters, logits, and their slots."""

import itertools

import jax
import pytest
import torch

from flaxattn import MODELS, InputError, create_model
from flaxattn.inspect.network import placed
from flaxattn.models import RegNet
from flaxattn.models.regnet import REGNETS
from tests.models.networks import check_logits, check_names, shapes_of
from tests.models.test_resnet import LOGITS, check
from tests.torch_reference.torchvision_shim import timm

# One with each feature: without and with squeeze-and-excitation, and torchvision's rounding.
FEW = ("regnetx_002", "regnety_004", "regnety_008_tv")
# Of no other structure than timm's RegNetX and RegNetY.
OTHERS = {"regnety_040_sgn", "regnetv_040", "regnetv_064"}
# 1.3 billion parameters: in float64, ours beside timm's, they need more than 24 GiB.
LARGEST = "regnety_2560"


def quick(names, few=FEW):
    return [pytest.param(n, marks=[] if n in few else [pytest.mark.slow]) for n in names]


def test_every_regnet_x_and_y_of_timms_is_there():
    theirs = {name for name in timm.list_models(module="regnet") if "regnetz" not in name}
    assert theirs - OTHERS == set(REGNETS)
    assert set(REGNETS) <= MODELS.keys()


@pytest.mark.parametrize("name", quick(sorted(REGNETS)))
def test_parameters_have_timms_names_and_shapes(name):
    with torch.device("meta"):
        reference = timm.create_model(name)
    model = create_model(name)
    check_names(model, shapes_of(model), {"timm": reference})


@pytest.mark.parametrize("dtype", quick(LOGITS, few=["float64"]))
@pytest.mark.parametrize("name", quick(["regnetx_002", "regnety_002"], few=["regnety_002"]))
def test_networks_are_timms(name, dtype, record_property):
    """In eval and in train mode, statistics included."""
    model, reference = create_model(name), timm.create_model(name)
    check(record_property, name, model, reference, size=(65, 49), dtype=dtype, naming="timm")


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, (65, 97)], ids=["own", "odd"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name, dtype in itertools.product(sorted(REGNETS), LOGITS)
        if (name, dtype) != (LARGEST, "float64")
    ],
)
def test_logits_are_timms_at_own_and_odd_sizes(name, size, dtype, record_property):
    reference = timm.create_model(name)
    size = size or reference.default_cfg["input_size"][1:]
    model = create_model(name)
    check_logits(record_property, name, model, reference, size=size, dtype=dtype, naming="timm")


def paths(**fields):
    model = create_model("regnety_002", num_classes=0, **fields)
    return [(layer.path, layer.layer) for layer in placed(model, (1, 64, 64, 3))]


def test_slots():
    own = paths()
    assert len(own) == 13
    assert {layer for _, layer in own} == {"SqueezeExcite"}
    assert paths(attention=False) == []
    assert [layer for _, layer in paths(attention={"name": "eca", "stages": 1})] == [
        "EfficientChannel",
        *["SqueezeExcite"] * 12,
    ]
    assert ("s4_6/context", "NonLocal") in paths(context={"name": "non_local", "stages": 4})


def test_an_x_takes_attention_in_all_blocks():
    model = create_model("regnetx_002", attention="se")
    assert len(placed(model, (1, 64, 64, 3))) == 13


def test_features_have_the_stated_channels_and_strides():
    model = create_model("regnety_002")
    x = jax.ShapeDtypeStruct((1, 64, 96, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, method="features"), variables, x)
    assert [(m.shape[-1], 64 // m.shape[1]) for m in maps] == list(
        zip(model.feature_channels, model.feature_strides, strict=True)
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"depth": 0}, "depth=0 is below 1"),
        ({"width_step": 1.0}, "use a step above 1"),
        ({"global_pool": "mean"}, "unknown global_pool 'mean'"),
        ({"se": -1.0}, "se=-1.0 is below 0"),
        ({"dropout": 1.5}, "dropout=1.5 must be 0 or more"),
        ({"drop_path": -2}, "drop_path=-2 must be 0 or more"),
        ({"num_classes": -1}, "num_classes=-1 is below 0"),
        (
            {"attention": {"name": "eca", "share": True}},
            "attention share=True: the blocks of a stage",
        ),
        ({"attention": "sk"}, "sk replaces a convolution"),
        ({"attention": {"name": "se", "graft": True}, "se": 0.25}, "use context="),
    ],
)
def test_what_cannot_be_built(fields, sentence):
    numbers = REGNETS["regnetx_002"] | fields
    with pytest.raises(InputError, match=sentence):
        RegNet(**numbers)

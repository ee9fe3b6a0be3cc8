"""RegNets against timm's: parameters, logits, and their slots."""

import itertools

import jax
import numpy as np
import pytest
import torch

from flaxattn import MODELS, InputError, create_model, weights
from flaxattn.inspect.network import placed
from flaxattn.models import RegNet
from flaxattn.models.regnet import REGNETS
from tests.models.networks import check_logits, check_names, shapes_of, torch_shapes
from tests.models.test_resnet import LOGITS, check
from tests.torch_reference.torchvision_shim import timm, torchvision

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


# torchvision calls them by their multiply-adds, and rounds three of them to other widths than timm.
TORCHVISION = {
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_x_800mf": "regnetx_008",
    "regnet_x_1_6gf": "regnetx_016",
    "regnet_x_3_2gf": "regnetx_032",
    "regnet_x_8gf": "regnetx_080",
    "regnet_x_16gf": "regnetx_160",
    "regnet_x_32gf": "regnetx_320",
    "regnet_y_400mf": "regnety_004",
    "regnet_y_800mf": "regnety_008_tv",
    "regnet_y_1_6gf": "regnety_016",
    "regnet_y_3_2gf": "regnety_032",
    "regnet_y_8gf": "regnety_080_tv",
    "regnet_y_16gf": "regnety_160",
    "regnet_y_32gf": "regnety_320",
    "regnet_y_128gf": "regnety_1280",
}


@pytest.fixture
def torchvision_on_meta(monkeypatch):
    """Makes torchvision's networks without numbers."""
    block_params = torchvision.models.regnet.BlockParams
    with_numbers = block_params.from_init_params

    def on_the_cpu(*numbers, **fields):
        with torch.device("cpu"):
            return with_numbers(*numbers, **fields)

    monkeypatch.setattr(block_params, "from_init_params", on_the_cpu)
    with torch.device("meta"):
        yield torchvision.models.get_model


def test_every_regnet_of_torchvisions_is_there():
    theirs = {name for name in torchvision.models.list_models() if name.startswith("regnet")}
    assert theirs == set(TORCHVISION)


@pytest.mark.parametrize("name", quick(TORCHVISION, few=["regnet_x_400mf", "regnet_y_800mf"]))
def test_torchvisions_have_the_same_widths(name, torchvision_on_meta):
    """Of stages, groups, squeeze and stem; and those of other widths are refused."""
    model, reference = create_model(TORCHVISION[name]), torchvision_on_meta(name)
    check_names(model, shapes_of(model), {"torchvision": reference})
    groups = [m.groups for m in reference.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {1, *groups} == {1, *(w // min(model.group_size, w) for w, _ in model.stages)}

    shapes = torch_shapes(reference)
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    assert weights.load_pretrained(model, state, (1, 64, 64, 3)).naming == "torchvision"
    if TORCHVISION[name].endswith("_tv"):
        timms = create_model(TORCHVISION[name].removesuffix("_tv"))
        with pytest.raises(InputError, match=f"look like the weights of {TORCHVISION[name]}:"):
            weights.load(timms, state, (1, 64, 64, 3))


@pytest.mark.parametrize("name", ["regnet_x_400mf", "regnet_y_400mf"])
def test_networks_are_torchvisions(name, record_property):
    reference = torchvision.models.get_model(name, num_classes=5)
    model = create_model(TORCHVISION[name], num_classes=5)
    check_logits(
        record_property,
        name,
        model,
        reference,
        size=(65, 49),
        dtype="float64",
        naming="torchvision",
    )


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

"""All residual networks of timm, by name: parameters, logits, statistics, and their fields."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn import MODELS, InputError, create_model, weights
from flaxattn.layers.abstract_variables import abstract_variables
from flaxattn.layers.norm import BatchNorm, GroupNorm
from flaxattn.models import ResNet, SENet
from flaxattn.models.downsampling import (
    average_pool,
    blur_pool,
    overlapping_average_pool,
    whole_average_pool,
)
from flaxattn.models.resnets import RESNETS
from flaxattn.models.senet import SENETS
from tests.attention import parity
from tests.models.networks import (
    check_features,
    load_and_back,
    our_shapes,
    shapes_of,
    torch_shapes,
)
from tests.models.test_resnet import LOGITS, check
from tests.torch_reference.torchvision_shim import timm, torchvision

NAMES = sorted({*RESNETS, *SENETS} - {"resnet10"})
# In these no two blocks have the same widths.
PRUNED = {"ecaresnet50d_pruned", "ecaresnet101d_pruned"}

# Each has something that the others lack; what the second row has, the first has in parts.
DIFFERENT = (
    "test_resnet",
    "resnetblur50d",
    "resnet50_gn",
    "resnetrs50",
    "skresnext50_32x4d",
    "resnest50d",
    "legacy_seresnet18",
)
MORE = (
    "resnetaa50",
    "senet154",
    "legacy_seresnet50",
    "resnet10t",
    "resnet50s",
    "resnext50_32x4d",
    "ecaresnetlight",
    "skresnet34",
    "resnest50d_1s4x24d",
    "resnest50d_4s2x40d",
    "legacy_senet154",
)

# Odd, and the maps of the stages even, as torch's anti-aliased networks need them.
ODD = (65, 97)


def depth(name):
    return sum((RESNETS | SENETS)[name]["stage_sizes"])


def reference(name, **fields):
    """timm's network without numbers."""
    with torch.device("meta"):
        return timm.create_model(name, **fields)


def with_copies(shapes, stage_sizes):
    """`shapes`, with the second block of each stage once for every block from the third on."""
    copies = {}
    for key, shape in shapes.items():
        stage, second, rest = re.fullmatch(r"(?:layer(.)\.(1)\.)?(.*)", key).groups()
        for block in range(2, stage_sizes[int(stage) - 1]) if second else ():
            copies[f"layer{stage}.{block}.{rest}"] = shape
    return shapes | copies


def test_every_name_of_timms_is_there():
    modules = ("resnet", "sknet", "resnest", "senet")
    theirs = {name for module in modules for name in timm.list_models(module=module)}
    assert theirs == set(NAMES)
    assert set(NAMES) <= MODELS.keys()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if depth(name) > 16 else []) for name in NAMES],
)
def test_parameters_have_timms_names_and_shapes(name):
    """All tensors of both; of ours two blocks a stage are made, for the others are like these."""
    model, network = create_model(name), reference(name)
    check_features(model, network)
    theirs = torch_shapes(network)
    if name in PRUNED:
        assert our_shapes(model, "timm") == theirs
        return
    short = model.clone(stage_sizes=[min(size, 2) for size in model.stage_sizes])
    assert with_copies(our_shapes(short, "timm"), model.stage_sizes) == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_whole_networks_have_timms_parameters(name):
    model, theirs = create_model(name), reference(name)
    assert our_shapes(model, "timm") == torch_shapes(theirs)
    params = jax.tree.leaves(shapes_of(model)["params"])
    assert sum(p.size for p in params) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
        "wide_resnet50_2",
        "wide_resnet101_2",
    ],
)
def test_parameters_have_torchvisions_names_and_shapes(name):
    with torch.device("meta"):
        theirs = torch_shapes(torchvision.models.get_model(name, weights=None))
    model = create_model(name)
    short = model.clone(stage_sizes=[min(size, 2) for size in model.stage_sizes])
    assert with_copies(our_shapes(short, None), model.stage_sizes) == theirs


@pytest.mark.parametrize(
    "name", [*DIFFERENT, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_networks_are_timms(name, record_property):
    """In eval and in train mode, statistics included; and the weights go out as they came in."""
    sizes = (1, 1, 1, 1)
    model = create_model(name, stage_sizes=sizes, num_classes=7, dropout=0.0)
    theirs = timm.create_model(name, layers=sizes, num_classes=7, drop_rate=0.0)
    row = f"{name}, one block a stage"
    check(record_property, row, model, theirs, size=ODD, dtype="float64", naming="timm")
    load_and_back(model, theirs.float(), (1, *ODD, 3), "timm")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES, key=depth))
def test_logits_are_timms_at_own_and_odd_sizes(name, record_property):
    """Whole networks in eval mode, one image each, and bit-equal weights both ways."""
    theirs = timm.create_model(name)
    own = theirs.default_cfg["input_size"][1:]
    parity.randomise(theirs, np.random.default_rng(0))
    theirs.eval()
    model = create_model(name)
    load_and_back(model, theirs, (1, *ODD, 3), "timm")
    for dtype, bound in LOGITS.items():
        theirs = theirs.to(getattr(torch, dtype))
        images, expected = {}, {}
        for size in (own, ODD):
            x = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(dtype)
            with torch.no_grad():
                images[size] = x
                expected[size] = theirs(torch.tensor(parity.to_channels_first(x))).numpy()
        with jax.enable_x64(dtype == "float64"):
            model = model.clone(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
            state = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
            variables = weights.load(model, state, (1, *ODD, 3), "timm")
            if dtype == "float64":  # the last: the largest network has 4 GB of these
                del theirs, state
            variables = jax.device_put(variables)
            for size, x in images.items():
                error = parity.difference(jax.jit(model.apply)(variables, x), expected[size])
                record_property("parity", (name, f"logits {dtype}", error, bound))
                assert error <= bound, f"{name} at {size}: logits differ by {error:.1e}"


def structure(model):
    return jax.tree.map(lambda leaf: leaf.shape, shapes_of(model))


def test_a_names_attention_is_a_placement_like_any_other():
    def tree(name, **fields):
        return structure(create_model(name, stage_sizes=(1, 1, 1, 1), **fields))

    assert tree("resnet50") != tree("seresnet50") == tree("resnet50", attention="se")
    assert tree("seresnet50", attention="eca") == tree("resnet50", attention="eca")
    assert tree("seresnet50", attention=False) == tree("resnet50")


@pytest.mark.parametrize("name", ["resnet50t", "resnetaa50", "skresnet50", "legacy_senet154"])
def test_slots_work_in_every_kind_of_network(name):
    sizes = (1, 2, 1, 1)
    placed = {"attention": {"name": "cbam", "position": "mid", "share": True}, "context": "se"}
    model = create_model(name, stage_sizes=sizes, **placed)
    params = structure(model)["params"]
    layer = "se_module" if name.startswith("legacy") else "se"
    assert {key for key in params if key.endswith(layer)} == {
        f"layer{stage}_{layer}" for stage in range(1, 5)
    }
    assert {key for key, children in params.items() if "context" in children} == {
        "layer1_0",
        "layer2_1",
        "layer3_0",
        "layer4_0",
    }
    convs = structure(create_model(name, stage_sizes=sizes, conv={"name": "sk", "stages": 2}))
    assert "paths_0" in convs["params"]["layer2_0"]["conv2"]
    assert "kernel" in convs["params"]["layer3_0"]["conv2"]


def test_beside_a_selective_kernel_alone_are_timms_modules():
    model = create_model("resnet50", conv={"name": "sk", "variant": "timm", "stages": 2})
    keys = our_shapes(model, "timm")
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.conv.weight"} <= keys.keys()
    assert {"layer1.0.bn3.weight", "layer2.3.conv3.bn.weight"} <= keys.keys()


@pytest.mark.parametrize("name", [*DIFFERENT, *MORE])
def test_features_have_the_stated_channels_and_strides(name):
    model = create_model(name, stage_sizes=(1, 1, 1, 1))
    x = jax.ShapeDtypeStruct((2, 64, 96, 1), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    maps = jax.eval_shape(functools.partial(model.apply, method="features"), variables, x)
    assert [m.shape for m in maps] == [
        (2, 64 // stride, 96 // stride, channels)
        for channels, stride in zip(model.feature_channels, model.feature_strides, strict=True)
    ]


def small(**fields):
    return create_model("test_resnet", **{"num_classes": 5, **fields})


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_global_pools_are_timms(pool, images, record_property):
    fields = {"num_classes": 5 if images == 3 else 0, "global_pool": pool}
    theirs = timm.create_model("test_resnet", in_chans=images, **fields).double().eval()
    parity.randomise(theirs, np.random.default_rng(0))
    x = np.random.default_rng(0).normal(size=(2, 33, 48, images))
    with jax.enable_x64(True):
        model = small(param_dtype=jnp.float64, **fields)
        state = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
        ours = jax.jit(model.apply)(weights.load(model, state, x.shape), x)
    with torch.no_grad():
        expected = theirs(torch.tensor(parity.to_channels_first(x))).numpy()
    error = parity.difference(ours, expected)
    record_property("parity", (f"test_resnet {pool}", "logits float64", error, LOGITS["float64"]))
    assert error <= LOGITS["float64"]


def random_variables(model, x):
    return jax.jit(model.init)(jax.random.key(0), x)


def test_drop_path_leaves_out_whole_branches_and_scales_the_others():
    """Never the first block's, and the last block's as often as it says."""
    model = ResNet((1, 1), "basic", width=8, stem="small", drop_path=0.5)
    x = jax.random.normal(jax.random.key(1), (64, 8, 8, 3))
    variables = random_variables(model, x)
    _, state = jax.jit(
        functools.partial(
            model.apply,
            train=True,
            capture_intermediates=True,
            mutable=["batch_stats", "intermediates"],
            rngs={"dropout": jax.random.key(2)},
        )
    )(variables, x)
    first, last = (state["intermediates"][f"layer{stage}_0"] for stage in (1, 2))
    (branch,), (shortcut,), (answer,) = (
        last["bn2"]["__call__"],
        last["downsample_1"]["__call__"],
        last["__call__"],
    )
    scaled, none = jax.nn.relu(shortcut + 2 * branch), jax.nn.relu(shortcut)
    kept = np.array([np.allclose(a, s, atol=1e-5) for a, s in zip(answer, scaled, strict=True)])
    dropped = np.array([np.array_equal(a, n) for a, n in zip(answer, none, strict=True)])
    assert (kept ^ dropped).all()
    assert 16 < dropped.sum() < 48
    (stem,) = state["intermediates"]["bn1"]["__call__"]
    np.testing.assert_allclose(
        first["__call__"][0],
        jax.nn.relu(jax.nn.relu(stem) + first["bn2"]["__call__"][0]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_drop_path_grows_linearly():
    model = create_model("resnet10", stage_sizes=(2, 1, 2), width=8, drop_path=0.4)
    bound = model.bind(structure_of_zeros(model))
    rates = [block.drop_path for stage in (1, 2, 3) for block in getattr(bound, f"layer{stage}")]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def structure_of_zeros(model):
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_variables(model, (1, 32, 32, 3))
    )


def test_dropout_stands_before_the_classifier_in_train_mode_alone():
    model = ResNet((1,), "basic", num_classes=8, width=8, stem="small", dropout=0.5)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = random_variables(model, x)
    # A classifier that answers what it is given.
    fc = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    variables = variables | {"params": variables["params"] | {"fc": fc}}

    def run(model):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        return jax.jit(apply)(variables, x, rngs={"dropout": jax.random.key(2)})[0]

    dropped, pooled = run(model), run(model.clone(dropout=0.0))
    kept = np.asarray(dropped) != 0
    assert 0 < kept.sum() < kept.size
    np.testing.assert_allclose(dropped, np.where(kept, 2 * pooled, 0), rtol=1e-6)
    evaluated = [jax.jit(m.apply)(variables, x) for m in (model, model.clone(dropout=0.0))]
    np.testing.assert_array_equal(*evaluated)


def test_legacy_networks_have_timms_dropout():
    assert create_model("legacy_seresnet50").dropout == 0.2
    assert timm.create_model("legacy_seresnet18").drop_rate == 0.2


@pytest.mark.parametrize("norm", [BatchNorm, functools.partial(GroupNorm, num_groups=4)])
def test_zero_init_last_starts_with_the_shortcuts(norm):
    model = ResNet(
        (1, 1), ("basic", "bottleneck"), width=8, stem="small", norm=norm, zero_init_last=True
    )
    params = random_variables(model, jnp.ones((1, 8, 8, 3)))["params"]
    for block, last in (("layer1_0", "bn2"), ("layer2_0", "bn3")):
        norms = {k: float(v["scale"].max()) for k, v in params[block].items() if "scale" in v}
        assert norms.pop(last) == 0
        assert set(norms.values()) == {1}


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 4)], ids=str)
def test_pools_of_any_size(shape):
    """torch's reflection needs two rows; from there on as torch, and one row is its own."""
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype("float32")
    repeated = np.pad(x, [(0, 0), *((0, int(n == 1)) for n in shape), (0, 0)], "edge")
    first = torch.tensor(parity.to_channels_first(repeated))
    halves = tuple(-(-n // 2) for n in shape)
    expected = timm.layers.BlurPool2d(3)(first).numpy()[:, :, : halves[0], : halves[1]]
    np.testing.assert_allclose(blur_pool(x), np.moveaxis(expected, 1, -1), rtol=1e-6, atol=1e-6)
    whole = torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    expected = whole(torch.tensor(parity.to_channels_first(x))).numpy()
    np.testing.assert_allclose(
        whole_average_pool(x), np.moveaxis(expected, 1, -1), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    "pool", [average_pool, whole_average_pool, overlapping_average_pool, blur_pool]
)
def test_pools_add_up_wide(pool):
    x = (100 + jax.random.normal(jax.random.key(0), (2, 6, 6, 8))).astype(jnp.bfloat16)
    expected = pool(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(pool(x), expected, strict=True)


def test_group_norm_computes_wide_and_answers_narrow():
    x = (100 + jax.random.normal(jax.random.key(0), (2, 5, 5, 64))).astype(jnp.bfloat16)
    norm = GroupNorm()
    variables = jax.jit(norm.init)(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    answer = norm.apply(variables, x, train=True)
    assert answer.dtype == jnp.bfloat16
    groups = np.asarray(x, np.float64).reshape(2, 25, 32, 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    assert parity.difference(answer, expected.reshape(x.shape)) < 0.005


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"pruned": ((8, ((2, 2),)),)}, r"widths of \(1,\) blocks in the stages: give those of st"),
        (
            {"pruned": ((8, ((2, 2),)), (8, ((2, 2),))), "groups": 2},
            "pruned with groups=2: only the widths of bottlenecks without groups",
        ),
        ({"block": "basic", "groups": 32}, "groups=32 is for bottlenecks: use block='bottleneck'"),
        ({"block": ("bottleneck", "basic"), "group_width": 4}, "group_width=4 is for bottlenecks"),
        ({"block": ("basic", "bottlenek")}, "unknown block 'bottlenek'"),
        ({"block": ("basic",)}, r"block=\('basic',\) are 1 for 2 stages: use one for each"),
        ({"width": [8, 8, 8]}, "are 3 for 2 stages"),
        ({"width": (8, 0)}, "width=0 is below 1"),
        ({"groups": 0}, "groups=0 is below 1"),
        ({"first_reduction": 0}, "first_reduction=0 is below 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be 0 or more, and below 1"),
        ({"drop_path": -0.1}, "drop_path=-0.1 must be 0 or more"),
        ({"stem": "deap"}, "unknown stem 'deap': did you mean deep"),
        ({"stem_width": 0}, "stem_width=0 is below 1"),
        ({"stem_pool": "avg"}, "unknown stem_pool 'avg'.*Known: conv, max"),
        ({"shortcut": "2x2"}, "unknown shortcut '2x2'"),
        ({"downsampling": "blurr"}, "unknown downsampling 'blurr': did you mean blur"),
        ({"global_pool": "mean"}, "unknown global_pool 'mean'"),
    ],
    ids=str,
)
def test_structure_that_cannot_be_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        ResNet((1, 1), **fields)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"downsampling": "blur"}, "SENet has no downsampling='blur': use 'strides'"),
        ({"stem_pool": "conv"}, "SENet has no stem_pool='conv'"),
        ({"block": "basic"}, "unknown block 'basic': did you mean caffe_basic"),
    ],
    ids=str,
)
def test_what_senet_lacks_is_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        SENet((1, 1), **fields)


def test_maps_that_an_average_cannot_halve_are_refused():
    """torch stops at the add too."""
    x = jax.ShapeDtypeStruct((1, 72, 64, 3), jnp.float32)
    model = create_model("resnetaa50", stage_sizes=(1, 1, 1, 1))
    with pytest.raises(InputError, match=r"\(1, 4, 4, 1024\) cannot be added .* use images whose"):
        jax.eval_shape(model.init, jax.random.key(0), x)
    with pytest.raises(RuntimeError, match="must match"):
        timm.create_model("resnetaa34d", layers=(1, 1, 1, 1))(torch.zeros(2, 3, 72, 64))


def test_group_norm_refuses_channels_that_do_not_divide():
    x = jnp.zeros((1, 4, 4, 48))
    with pytest.raises(
        InputError, match="num_groups=32 must divide the 48 channels: use num_groups=16"
    ):
        GroupNorm().init(jax.random.key(0), x)

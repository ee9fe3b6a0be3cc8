"""What a segmentation network takes, returns and refuses, whatever its head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from flaxattn import InputError, initialise, weights
from flaxattn.attention import CBAM
from flaxattn.inspect.network import placed
from flaxattn.models.mobilenet import MOBILENET_V3_LARGE
from flaxattn.models.segmentation import SEGMENTERS, FCNHead, create_segmenter
from tests.attention import parity
from tests.models.networks import our_shapes, shapes_of

TINY = {"stage_sizes": (1, 1, 1, 1), "width": 8, "stem_width": 4}
# Of each stage the first block.
SHALLOW = {"stages": tuple((rows[0]._replace(repeats=1),) for rows in MOBILENET_V3_LARGE)}
SIZE = (33, 17)
X = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32)


def tiny(name="fcn_resnet50", num_classes=4, *, backbone=None, **fields):
    small = TINY if "resnet" in name else SHALLOW
    return create_segmenter(name, num_classes, backbone=small | (backbone or {}), **fields)


def images(batch=2):
    return jax.random.normal(jax.random.key(0), (batch, *SIZE, 3))


@functools.cache
def initialised(**fields):
    model = tiny(**fields)
    return model, initialise(model, jax.random.key(1), X.shape)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("fcn_resnet50", {"out", "aux"}),
        ("deeplabv3_resnet50", {"out", "aux"}),
        ("lraspp_mobilenet_v3_large", {"out"}),
        ("psanet_resnet50", {"out", "aux"}),
        ("danet_resnet50", {"out", "position", "channel"}),
        ("ccnet_resnet50", {"out", "aux"}),
    ],
)
def test_logits_are_float32_at_the_images_size(name, outputs):
    """Those of a network in bfloat16 too; as a dict in train mode or where it is asked for."""
    model = tiny(name, dtype=jnp.bfloat16)
    variables = shapes_of(model, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.ShapeDtypeStruct((*X.shape[:-1], 4), jnp.float32)
    assert jax.eval_shape(model.apply, variables, X) == logits

    def train(variables, x):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])

    for found in (
        jax.eval_shape(functools.partial(model.apply, aux=True), variables, X),
        jax.eval_shape(train, variables, X)[0],
    ):
        assert found == dict.fromkeys(outputs, logits)


def test_bfloat16_is_near_float32():
    model, variables = initialised()
    narrow = jax.jit(model.clone(dtype=jnp.bfloat16).apply)(variables, images())
    wide = jax.jit(functools.partial(model.apply, aux=True))(variables, images())["out"]
    assert 0 < parity.difference(narrow, wide) < 0.05


def test_an_auxiliary_head_can_be_left_out():
    model, variables = initialised()
    plain = tiny(aux=False)
    assert shapes_of(plain, X)["params"].keys() == {"backbone", "classifier"}
    without = {
        collection: {name: tree for name, tree in parts.items() if name != "aux_classifier"}
        for collection, parts in variables.items()
    }

    @jax.jit
    def run(variables, without):
        return plain.apply(without, images(), aux=True), model.apply(variables, images())

    found, expected = run(variables, without)
    assert found.keys() == {"out"}
    np.testing.assert_allclose(found["out"], expected, rtol=1e-5)


class Halved(nn.Module):
    """Half of x: what stands after it sees it."""

    role = "context"

    @nn.compact
    def __call__(self, x, train=False):
        return x / 2


class Cut(nn.Module):
    role = "context"

    @nn.compact
    def __call__(self, x, train=False):
        return x[:, :-1]


def test_attention_stands_between_backbone_and_head():
    """The head sees half of the last map; the auxiliary head's map is before it."""
    model, variables = initialised()

    def run(model, variables):
        return model.apply(variables, images(), aux=True)

    halved = run(tiny(attention=Halved), variables)
    kernel = variables["params"]["classifier"]["conv"]["kernel"]
    params = variables["params"] | {
        "classifier": variables["params"]["classifier"] | {"conv": {"kernel": kernel / 2}},
    }
    expected = run(model, variables | {"params": params})
    for name in ("out", "aux"):
        np.testing.assert_allclose(halved[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "attention",
    ["cbam", {"name": "cbam", "reduction": 8}, CBAM, functools.partial(CBAM, reduction=8)],
    ids=["name", "dict", "class", "partial"],
)
def test_attention_is_given_in_any_form(attention):
    model = tiny(attention=attention, backbone={"attention": "se"})
    found = [(layer.path, layer.input_shape) for layer in placed(model, X.shape)]
    assert found[-1] == ("neck", (2, 5, 3, 256))
    assert found[0] == ("backbone/layer1_0/se", (2, 9, 5, 32))
    assert len(found) == 5


def test_a_config_says_it_all():
    """A ConfigDict is not a Mapping."""
    config = ConfigDict(
        {
            "name": "deeplabv3_resnet50",
            "attention": {"name": "se", "reduction": 8},
            "backbone": {**TINY, "attention": {"name": "eca", "stages": [2]}},
            "head": {"rates": [6, 12], "dropout": 0.2},
            "aux": {"dropout": 0.0},
        }
    )
    model = create_segmenter(**config, num_classes=3)
    heads = model.heads
    assert (heads["classifier"].dropout, heads["aux_classifier"].dropout) == (0.2, 0.0)
    assert [layer.path for layer in placed(model, X.shape)] == ["backbone/layer2_0/se", "neck"]
    assert "aspp_convs_3_0" in shapes_of(model, X)["params"]["classifier"]


def test_a_graft_in_a_trained_network_leaves_its_logits():
    model, variables = initialised()
    state = weights.to_torch(variables, "torchvision", module=model)
    grafted = tiny(attention={"name": "cbam", "graft": True})
    loaded = weights.load_pretrained(grafted, state, X.shape, allow_new=("attention",))
    assert (loaded.fresh, loaded.naming) == (("neck",), "torchvision")
    np.testing.assert_allclose(
        grafted.apply(loaded.variables, images()),
        model.apply(variables, images()),
        rtol=1e-5,
        atol=1e-6,
    )


def test_attention_has_its_own_names_in_every_source():
    model = tiny("psanet_resnet50", attention={"name": "se", "variant": "timm"})
    keys = our_shapes(model, "semseg", shapes_of(model, X))
    assert {"neck.fc1.weight", "layer0.0.weight", "psa.reduce.0.weight"} <= keys.keys()


@pytest.mark.parametrize(("channels", "whole"), [(False, False), (True, True)])
def test_dropout_leaves_out_numbers_or_channels(channels, whole):
    head = FCNHead(num_classes=2, dropout=0.5, drop_channels=channels, activation=jnp.ones_like)
    x = jnp.ones((2, 5, 5, 64))
    variables = jax.tree.map(jnp.ones_like, head.init(jax.random.key(0), x))
    _, state = head.apply(
        variables,
        x,
        True,
        rngs={"dropout": jax.random.key(1)},
        capture_intermediates=True,
        mutable=["intermediates", "batch_stats"],
    )
    (dropped,) = state["intermediates"]["Dropout_0"]["__call__"]
    zeros = np.mean(np.asarray(dropped) == 0, axis=(1, 2))
    assert 0.3 < zeros.mean() < 0.7
    assert set(np.unique(zeros)) <= {0.0, 1.0} if whole else len(np.unique(zeros)) > 5


def create(name="fcn_resnet50", **fields):
    return lambda: create_segmenter(name, **fields)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (create("fcn_resnet5"), "unknown segmenter 'fcn_resnet5': did you mean fcn_resnet50"),
        (create(num_classes=0), "num_classes=0 is below 1"),
        (create(dropuot=0.1), "unknown field of Segmenter 'dropuot'"),
        (create(head={"dropuot": 0.1}), "unknown field of FCNHead 'dropuot': did you mean drop"),
        (create(aux={"rates": (1,)}), "unknown field of FCNHead 'rates'"),
        (create(backbone={"strides": 8}), "unknown field of ResNet 'strides'"),
        (create(naming="timm"), "unknown naming 'timm'"),
        (create("lraspp_mobilenet_v3_large", aux=True), "has no auxiliary head"),
        (create(attention="psa"), "could be any of three papers' layers"),
        (create(attention="psanet"), "is a head and changes the number of channels"),
        (create(attention="sk"), "replaces a convolution"),
        (create(attention={"name": "se", "position": "mid"}), "unknown position 'mid'"),
        (create(attention=CBAM()), "pass the class"),
    ],
)
def test_what_cannot_be_is_refused(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_a_layer_that_changes_its_map_is_refused():
    with pytest.raises(InputError, match=r"Cut returns \(2, 4, 3, 256\) for a map"):
        shapes_of(tiny(attention=Cut), X)


def test_all_names_are_there():
    networks = ("fcn", "deeplabv3", "psanet", "danet", "ccnet")
    resnets = {f"{network}_resnet{depth}" for network in networks for depth in (50, 101)}
    assert SEGMENTERS.keys() == resnets | {
        "deeplabv3_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large",
        "lraspp_resnet10",
    }


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("fcn_resnet50", {"classifier/score", "aux_classifier/score"}),
        ("lraspp_mobilenet_v3_large", {"classifier/low_classifier", "classifier/high_classifier"}),
        ("psanet_resnet50", {"classifier/cls/score", "aux_classifier/score"}),
        ("danet_resnet50", {f"classifier/conv{i}_1" for i in (6, 7, 8)}),
        ("ccnet_resnet50", {"classifier/bottleneck/score", "aux_classifier/score"}),
    ],
)
def test_the_layers_of_the_classes_are_the_head(name, scores):
    narrow, wide = (tiny(name, classes, dtype=jnp.bfloat16) for classes in (4, 7))
    assert set(narrow.head_name) == scores
    paths = [flatten_dict(shapes_of(model, X)) for model in (narrow, wide)]
    assert paths[0].keys() == paths[1].keys()
    differing = {path for path, leaf in paths[0].items() if leaf.shape != paths[1][path].shape}
    assert {"/".join(path[1:-1]) for path in differing} == scores


def test_other_classes_are_a_new_head():
    """Of published weights all is kept but the layers that compute scores."""
    model, variables = initialised()
    state = weights.to_torch(variables, "torchvision", module=model)
    other = tiny(num_classes=7)
    with pytest.raises(InputError, match=r"only the head differs.*\(num_classes=4\)"):
        weights.load(other, state, X.shape)
    loaded = weights.load_pretrained(other, state, X.shape, allow_new=("head",))
    assert loaded.fresh == ("classifier/score", "aux_classifier/score")
    ours, theirs = flatten_dict(loaded.variables), flatten_dict(variables)
    for path in ours.keys() - {path for path in ours if "score" in path}:
        np.testing.assert_array_equal(ours[path], theirs[path])

"""torchvision's six segmentation networks: names, numbers, gradients and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxattn import InputError, weights
from flaxattn.models.segmentation import create_segmenter
from tests.attention import parity
from tests.models.networks import our_shapes, shapes_of, torch_shapes
from tests.models.segmentation.parity import (
    BOUND,
    calibrated,
    check_eval,
    close,
    images,
    to_torch,
)
from tests.torch_reference.torchvision_shim import torchvision

FCN = torchvision.models.segmentation.fcn
DEEPLAB = torchvision.models.segmentation.deeplabv3

PUBLISHED = {
    "fcn_resnet50": 35_322_218,
    "fcn_resnet101": 54_314_346,
    "deeplabv3_resnet50": 42_004_074,
    "deeplabv3_resnet101": 60_996_202,
    "deeplabv3_mobilenet_v3_large": 11_029_328,
    "lraspp_mobilenet_v3_large": 3_221_538,
}
X = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
SMALL = {"stage_sizes": (1, 1, 1, 1)}
NO_DROPOUT = {"head": {"dropout": 0.0}, "aux": {"dropout": 0.0}}


def reference(name):
    aux = {} if name.startswith("lraspp") else {"aux_loss": True}
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, **aux)


def small(network_class, head):
    """torchvision's network on a ResNet of its own classes with a block a stage."""
    backbone = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck,
        SMALL["stage_sizes"],
        replace_stride_with_dilation=[False, True, True],
    )
    layers = torchvision.models._utils.IntermediateLayerGetter(
        backbone, {"layer4": "out", "layer3": "aux"}
    )
    network = network_class(layers, head(2048, 5), FCN.FCNHead(1024, 5))
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return calibrated(network)


@pytest.fixture(scope="module")
def fcn():
    return small(FCN.FCN, FCN.FCNHead)


@pytest.fixture(scope="module")
def deeplab():
    return small(DEEPLAB.DeepLabV3, DEEPLAB.DeepLabHead)


def our_small(name):
    return create_segmenter(f"{name}_resnet50", 5, backbone=SMALL, **NO_DROPOUT)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_have_torchvisions_names_and_shapes(name):
    model = create_segmenter(name)
    shapes = shapes_of(model, X)
    with torch.device("meta"):
        theirs = torch_shapes(reference(name))
    assert our_shapes(model, "torchvision", shapes) == theirs
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == PUBLISHED[name]


def test_fcn_is_torchvisions(fcn):
    check_eval(our_small("fcn"), fcn, (65, 49))


@pytest.mark.parametrize(("size", "batch"), [((17, 23), 1), ((3, 2), 2)], ids=str)
def test_deeplab_is_torchvisions_on_tiny_images(deeplab, size, batch):
    check_eval(our_small("deeplabv3"), deeplab, size, batch=batch)


def test_lraspp_is_torchvisions():
    name = "lraspp_mobilenet_v3_large"
    check_eval(create_segmenter(name), calibrated(reference(name)), (47, 34))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_whole_networks_are_torchvisions(name):
    check_eval(create_segmenter(name), calibrated(reference(name)), (97, 130))


def test_training_is_torchvisions(fcn):
    """Outputs, gradients of all parameters, and the running statistics after the step."""
    before = {key: tensor.numpy().copy() for key, tensor in fcn.state_dict().items()}
    x, rng = images((33, 25)), np.random.default_rng(2)
    fcn.train().zero_grad()
    theirs = fcn(to_torch(x))
    cotangents = {name: rng.normal(size=(*x.shape[:-1], 5)) for name in theirs}
    sum((theirs[name] * to_torch(c)).sum() for name, c in cotangents.items()).backward()
    after = {key: tensor.numpy() for key, tensor in fcn.state_dict().items()}
    after |= {key: parameter.grad.numpy() for key, parameter in fcn.named_parameters()}

    with jax.enable_x64(True):
        model = our_small("fcn").clone(param_dtype=jnp.float64)
        variables = weights.load(model, before, x.shape)

        @jax.jit
        def step(params, statistics, x, cotangents):
            def apply(params):
                return model.apply(
                    {"params": params, **statistics}, x, train=True, mutable=["batch_stats"]
                )

            outputs, pullback, moved = jax.vjp(apply, params, has_aux=True)
            return outputs, {"params": pullback(cotangents)[0], **moved}

        params = variables.pop("params")
        ours, moved = step(params, variables, x, cotangents)
        expected = weights.load(model, after, x.shape)
    fcn.load_state_dict({key: torch.tensor(array) for key, array in before.items()})
    fcn.eval()
    for name, output in theirs.items():
        close(ours[name], output.detach().numpy(), name)
    largest = max(abs(g).max() for g in jax.tree.leaves(expected["params"]))
    jax.tree.map_with_path(lambda path, a, b: _close(path, a, b, 0.01 * largest), moved, expected)


def _close(path, ours, theirs, at_least):
    at_least = at_least if path[0].key == "params" else 0.0
    assert parity.difference(ours, theirs, at_least=at_least) <= BOUND, jax.tree_util.keystr(path)


def test_one_example_is_refused_by_deeplab_in_train_mode(deeplab):
    x = images((9, 9), batch=1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        deeplab.train()(to_torch(x))
    deeplab.eval()
    model = our_small("deeplabv3")
    with pytest.raises(InputError, match=r"more than one value per channel.*use a larger batch"):
        jax.eval_shape(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]),
            shapes_of(model, X),
            X,
        )


def test_weights_without_the_auxiliary_head_are_for_a_network_without_it(fcn):
    model = create_segmenter("fcn_resnet50", 5, backbone=SMALL, aux=False)
    state = {key: tensor.numpy() for key, tensor in fcn.state_dict().items()}
    with pytest.raises(InputError, match=r"do not fit Segmenter(.|\n)*unexpected: aux_classifier"):
        weights.load(model, state, X.shape)
    plain = {key: a for key, a in state.items() if not key.startswith("aux_classifier")}
    variables = weights.load(model, plain, X.shape)
    assert variables["params"].keys() == {"backbone", "classifier"}
    with pytest.raises(InputError, match="missing: aux_classifier"):
        weights.load(our_small("fcn"), plain, X.shape)

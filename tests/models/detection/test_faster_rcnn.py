"""Faster R-CNNs against torchvision's: names, every stage, losses, gradients; and on devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import PartitionSpec as P

from flaxattn import initialise, weights
from flaxattn.errors import InputError
from flaxattn.inspect.compiled import collectives
from flaxattn.layers.norm import BatchNorm
from flaxattn.models.detection import (
    DETECTORS,
    Detections,
    Targets,
    create_detector,
    postprocess,
)
from flaxattn.train.sharding import make_mesh
from flaxattn.weights.pretrained import load_pretrained
from tests.attention import parity
from tests.models.detection import reduced
from tests.models.detection.reduced import CANVAS, CLASSES, SIZES
from tests.models.networks import our_shapes, shapes_of, torch_shapes
from tests.torch_reference.torchvision_shim import torchvision

BOUND = 1e-9
KINDS = ("resnet", "v2", "mobilenet")
# What each detector's released weights have.
PARAMETERS = {
    "fasterrcnn_resnet50_fpn": 41_755_286,
    "fasterrcnn_resnet50_fpn_v2": 43_712_278,
    "fasterrcnn_mobilenet_v3_large_fpn": 19_386_354,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 19_386_354,
}


@functools.cache
def full_reference(name):
    with torch.device("meta"):
        return getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)


@pytest.mark.parametrize("name", DETECTORS)
def test_names_shapes_and_counts_are_torchvisions(name):
    model, reference = create_detector(name), full_reference(name)
    shapes = shapes_of(model)
    assert our_shapes(model, "torchvision", shapes) == torch_shapes(reference)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == PARAMETERS[name]
    numbers = (
        ("pre_nms_train", reference.rpn._pre_nms_top_n["training"]),
        ("pre_nms_test", reference.rpn._pre_nms_top_n["testing"]),
        ("post_nms_train", reference.rpn._post_nms_top_n["training"]),
        ("post_nms_test", reference.rpn._post_nms_top_n["testing"]),
        ("nms_threshold", reference.rpn.nms_thresh),
        ("score_threshold", reference.rpn.score_thresh),
        ("num_samples", reference.rpn.fg_bg_sampler.batch_size_per_image),
        ("anchor_sizes", reference.rpn.anchor_generator.sizes),
    )
    rpn = model.bind(shapes).rpn
    assert {field: getattr(rpn, field) for field, _ in numbers} == dict(numbers)


def stages(model, images, sizes):
    """What each stage makes, and the whole."""
    maps = model.pyramid(images)
    predictions = model.rpn(maps, images.shape[1:3])
    proposals = model.rpn.proposals(predictions, sizes, train=False)
    return maps, predictions, proposals, model(images, sizes)


def check_detections(ours, theirs):
    """The same boxes in the same order, where neighbours do not have the same score."""
    count = len(theirs["boxes"])
    np.testing.assert_array_equal(ours.valid, np.arange(len(ours.valid)) < count)
    for array in (ours.boxes, ours.scores, ours.labels):
        np.testing.assert_array_equal(array[count:], 0)
    assert parity.difference(ours.scores[:count], theirs["scores"].numpy()) < BOUND
    order = np.lexsort((*theirs["boxes"].numpy().T, -theirs["scores"].numpy().round(9)))
    own = np.lexsort((*ours.boxes[:count].T, -ours.scores[:count].round(9)))
    assert parity.difference(ours.boxes[own], theirs["boxes"].numpy()[order]) < BOUND
    np.testing.assert_array_equal(ours.labels[own], theirs["labels"].numpy()[order])


def check_stages(pair, images):
    run = jax.jit(functools.partial(pair.model.apply, method=stages))
    maps, predictions, proposals, found = jax.tree.map(
        np.asarray, run(pair.variables, images, np.array(SIZES))
    )
    with torch.no_grad():
        expected = reduced.detect(pair.reference.eval(), images)
    for ours, theirs in zip(maps, expected["features"], strict=True):
        assert parity.difference(ours, parity.to_channels_last(theirs.numpy())) < BOUND
    for ours, theirs in zip(predictions[:2], expected["head"], strict=True):
        for level, tensor in zip(ours, theirs, strict=True):
            flat = parity.to_channels_last(tensor.numpy()).reshape(level.shape)
            assert parity.difference(level, flat) < BOUND
    for i in range(len(images)):
        boxes = expected["proposals"][i].numpy()
        assert len(boxes) == proposals.valid[i].sum()
        assert parity.difference(proposals.boxes[i][: len(boxes)], boxes) < BOUND
        own = Detections(*(array[i] for array in found))
        check_detections(own, expected["detections"][i])


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_is_torchvisions(kind):
    with jax.enable_x64(True):
        check_stages(reduced.pair(kind), reduced.images())


def loss_and_logged(model, params, rest, images, targets):
    losses, moved = model.apply(
        {"params": params, **rest},
        images,
        np.array(SIZES),
        targets,
        method="losses",
        rngs={"sample": jax.random.key(0)},
        mutable=["batch_stats"],
    )
    losses = {name: ratio.numerator / ratio.denominator for name, ratio in losses.items()}
    return sum(losses.values()), (losses, moved)


def in_order(_, shape):
    """Numbers by which the first boxes are chosen."""
    return -jnp.arange(shape[0], dtype=float)


@pytest.mark.parametrize(
    "kind", ["resnet", "v2", pytest.param("mobilenet", marks=pytest.mark.slow)]
)
def test_losses_gradients_and_statistics_are_torchvisions(kind, monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    monkeypatch.setattr(  # torchvision has these labels in float32
        torch.nn.functional,
        "binary_cross_entropy_with_logits",
        lambda logits, labels: entropy(logits, labels.to(logits.dtype)),
    )
    ours, theirs = reduced.targets()
    with jax.enable_x64(True):
        pair = reduced.pair(kind)
        draw = {"draw": in_order}
        model = pair.model.clone(
            proposals={**pair.model.proposals, **draw}, heads={**pair.model.heads, **draw}
        )
        rest = {name: leaf for name, leaf in pair.variables.items() if name != "params"}
        step = jax.jit(jax.value_and_grad(functools.partial(loss_and_logged, model), has_aux=True))
        (_, (losses, moved)), gradients = step(
            pair.variables["params"], rest, reduced.images(), ours
        )
        expected = reduced.detect(pair.reference.train(), reduced.images(), theirs)["losses"]
        sum(expected.values()).backward()
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            assert parity.difference(loss, expected[name].item()) < BOUND, name
        gradients = weights.to_torch({"params": gradients}, "torchvision", module=model)
        for name, parameter in pair.reference.named_parameters():
            assert parity.difference(gradients[name], parameter.grad.numpy()) < BOUND, name
        statistics = weights.to_torch(moved, "torchvision", module=model)
        for name, buffer in pair.reference.named_buffers():
            if "num_batches" not in name:
                assert parity.difference(statistics[name], buffer.numpy()) < BOUND, name


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_there_and_back_bit_for_bit_and_the_naming_is_found(kind):
    model, reference = reduced.reduced(kind)
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    found = load_pretrained(model, state, (1, *CANVAS, 3))
    assert found.naming == "torchvision"
    back = weights.to_torch(found.variables, "torchvision", module=model)
    assert back.keys() == torch_shapes(reference).keys()
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, state[key], strict=True, err_msg=key)
    reference.load_state_dict({key: torch.tensor(tensor) for key, tensor in back.items()})


def test_files_of_versions_before_the_renames_load_too():
    model, reference = reduced.reduced("resnet")
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    old = {
        re.sub(r"(fpn\.\w+_blocks\.\d|rpn\.head\.conv)(\.0)+\.", r"\1.", key): tensor
        for key, tensor in state.items()
    }
    assert len(old.keys() - state.keys()) == 18
    found = load_pretrained(model, old, (1, *CANVAS, 3))
    assert found.naming == "torchvision_old"
    expected = weights.load(model, state, (1, *CANVAS, 3))
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected)
    back = weights.to_torch(found.variables, "torchvision_old", module=model)
    for key, tensor in old.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)


def test_other_classes_have_a_new_predictor():
    model, reference = reduced.reduced("resnet")
    state = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    found = load_pretrained(model.clone(num_classes=3), state, (1, *CANVAS, 3), allow_new=("head",))
    assert found.fresh == ("roi_heads/box_predictor",)
    assert len(found.left_out) == 4
    kernel = found.variables["params"]["roi_heads"]["box_predictor"]["bbox_pred"]["kernel"]
    assert kernel.shape == (reduced.HIDDEN, 12)


def small(**fields):
    """The quickest to compile, in float32."""
    rpn = {"pre_nms_test": 60, "post_nms_test": 40, "pre_nms_train": 80, "post_nms_train": 60}
    return create_detector(
        "fasterrcnn_resnet50_fpn",
        num_classes=3,
        body={"stage_sizes": (1, 1, 1, 1), "block": "basic", "width": 8},
        features=8,
        proposals={**rpn, "anchor_sizes": ((8,), (16,), (24,), (32,), (64,)), "num_samples": 32},
        heads={"hidden_features": 16, "num_samples": 24, "num_detections": 20},
        **fields,
    )


@functools.cache
def small_variables():
    """Larger kernels for the last layers, so that scores differ and boxes move."""
    variables = initialise(small(), jax.random.key(0), (1, 64, 96, 3))
    params = variables["params"]
    head, predictor = params["rpn"]["head"], params["roi_heads"]["box_predictor"]
    for layer, gain in (
        (head["cls_logits"], 20),
        (head["bbox_pred"], 20),
        (predictor["cls_score"], 3),
        (predictor["bbox_pred"], 3),
    ):
        layer["kernel"] = gain * layer["kernel"]
    return variables


def batch(count):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 64, 96, 3)).astype(np.float32)
    sizes = np.stack([rng.integers(40, 65, count), rng.integers(60, 97, count)], axis=1)
    corner = rng.uniform(0, 30, size=(count, 3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 30, size=corner.shape)], axis=-1)
    targets = Targets(
        boxes.astype(np.float32),
        rng.integers(1, 3, size=(count, 3)).astype(np.int32),
        np.arange(3)[None] < rng.integers(0, 4, size=(count, 1)),
        np.arange(100, 100 + count, dtype=np.int32),
    )
    return images, sizes.astype(np.int32), targets


def test_under_shard_map_devices_exchange_nothing_and_order_does_not_matter():
    """Proposals, suppression, samples and losses; an image's samples are those of its name."""
    model, variables = small(), small_variables()

    def run(variables, images, sizes, targets):
        given = (variables, images, sizes)
        rngs = {"sample": jax.random.key(1)}
        losses = model.apply(*given, targets, method="losses", rngs=rngs)
        return jax.tree.map(lambda number: number[None], losses), model.apply(*given)

    specs = {"in_specs": (P(), *[P("data")] * 3), "out_specs": P("data")}
    parts = jax.shard_map(run, mesh=make_mesh(), **specs)
    inputs = batch(16)
    program = jax.jit(parts).lower(variables, *inputs).compile()
    assert collectives(program.as_text()) == {}
    losses, found = program(variables, *inputs)
    # Every image on another device or at another place there, beside another one.
    rolled = functools.partial(jax.tree.map, lambda array: np.roll(array, 1, axis=0))
    same_losses, same = program(variables, *rolled(inputs))
    jax.tree.map(np.testing.assert_array_equal, same, rolled(found))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(lambda *pair: close(*(one.sum() for one in pair)), same_losses, losses)
    assert found.valid.any()
    assert (losses["loss_box_reg"].numerator > 0).any()
    assert {*losses["loss_objectness"].denominator.tolist()} == {2 * 32.0}


def test_boxes_go_back_to_the_images_they_come_from():
    boxes = jnp.array([[[10.0, 20.0, 30.0, 40.0]]])
    found = Detections(boxes, jnp.ones((1, 1)), jnp.ones((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    back = postprocess(found, jnp.array([[100, 200]]), jnp.array([[50, 300]]))
    np.testing.assert_allclose(back.boxes, [[[15, 10, 45, 20]]], rtol=1e-6)
    np.testing.assert_array_equal(back.scores, found.scores)


def test_nested_fields_keep_what_is_not_given():
    model = create_detector(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        body={"attention": {"name": "eca"}},
        proposals={"post_nms_test": 50},
    )
    assert model.proposals["pre_nms_test"] == 150
    assert model.proposals["post_nms_test"] == 50
    assert model.body["name"] == "mobilenet_v3_large"
    assert hash(model) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 1}, "num_classes=1 is below 2"),
        ({"fuse": "both", "attention": "simam"}, "unknown fuse 'both'"),
        ({"fuse": "top_down"}, "fuse='top_down' without attention"),
        ({"fuse": "top_down", "attention": {"name": "se", "graft": True}}, "with graft=True"),
        ({"fuse": "top_down", "attention": {"name": "se", "position": "input"}}, "differ in"),
        ({"attention": {"name": "se", "position": "mid"}}, "unknown position 'mid'"),
        ({"attention": {"name": "se", "stages": 5}}, "stage 5"),
        ({"proposals": {"nms_thresh": 0.5}}, "unknown field of RegionProposals 'nms_thresh'"),
        ({"heads": {"detections": 5}}, "unknown field of RoiHeads 'detections'"),
        ({"backbone": "resnet50"}, "unknown field of fasterrcnn_resnet50_fpn 'backbone'"),
    ],
)
def test_what_makes_no_detector_is_refused(fields, message):
    with pytest.raises(InputError, match=re.escape(message)):
        create_detector("fasterrcnn_resnet50_fpn", **fields)


def test_unknown_names_and_canvases_are_refused():
    with pytest.raises(InputError, match="unknown detector 'faster_rcnn'"):
        create_detector("faster_rcnn")
    x = jax.ShapeDtypeStruct((1, 100, 96, 3), jnp.float32)
    with pytest.raises(InputError, match=r"100x96 pixels: pad them .* such as 128x96"):
        jax.eval_shape(small().init, jax.random.key(0), x)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for fields, message in (
        ({"body": {"name": "vgg11"}}, "'vgg11' has no stages of blocks"),
        ({"proposals": {"anchor_sizes": ((8,), (16,))}}, "are for 2 maps, and the pyramid has 5"),
    ):
        with pytest.raises(InputError, match=message):
            jax.eval_shape(small().clone(**fields).init, jax.random.key(0), x)


def test_in_bfloat16_boxes_scores_and_losses_are_float32():
    model = small(dtype=jnp.bfloat16)
    shapes, inputs = jax.eval_shape(small_variables), jax.eval_shape(lambda: batch(2))
    found = jax.eval_shape(model.apply, shapes, *inputs[:2])
    assert found.boxes.dtype == found.scores.dtype == jnp.float32
    rngs = {"sample": jax.random.key(0)}
    losses = jax.eval_shape(
        functools.partial(model.apply, method="losses", rngs=rngs), shapes, *inputs
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(losses)} == {jnp.dtype("float32")}
    maps = jax.eval_shape(functools.partial(model.apply, method="pyramid"), shapes, inputs[0])
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_every_stage_of_the_whole_detector_is_torchvisions(name):
    make = getattr(torchvision.models.detection, name)
    reference = make(weights=None, weights_backbone=None, num_classes=CLASSES).double()
    with jax.enable_x64(True):
        # Untrained, torchvision's have norms that are not frozen.
        model = create_detector(name, num_classes=CLASSES, norm=BatchNorm, param_dtype=jnp.float64)
        check_stages(reduced.calibrated(model, reference), reduced.images())

"""Dilation instead of strides, as segmentation needs it, against torchvision's and timm's; taps."""

import functools

import jax
import numpy as np
import pytest
import torch

from flaxattn import InputError, create_model, initialise
from tests.models.networks import X, check_logits, our_shapes, shapes_of
from tests.models.test_resnet import check
from tests.torch_reference.torchvision_shim import timm, torchvision

ONE = {"stage_sizes": (1, 1, 1, 1)}


def test_a_dilated_resnet50_is_torchvisions(record_property):
    """The second block of a stage is the first with the stage's own dilation."""
    sizes = (1, 1, 2, 2)
    reference = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck,
        sizes,
        num_classes=7,
        replace_stride_with_dilation=[False, True, True],
    )
    model = create_model("resnet50", stage_sizes=sizes, num_classes=7, output_stride=8)
    row = "resnet50, output stride 8"
    check(record_property, row, model, reference, size=(64, 64), dtype="float64")


def test_a_dilated_mobilenet_v3_is_torchvisions(record_property):
    reference = torchvision.models.mobilenet_v3_small(dilated=True, num_classes=7)
    model = create_model("mobilenet_v3_small", num_classes=7, output_stride=16)
    check_logits(
        record_property,
        "mobilenet_v3_small, output stride 16",
        model,
        reference,
        size=(65, 64),
        dtype="float64",
        naming="torchvision",
    )


@pytest.mark.parametrize(
    ("name", "output_stride", "fields"),
    [
        ("test_resnet", 8, {}),
        ("regnetx_002", 8, {}),
        ("test_efficientnet", 8, {}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("regnety_002", 16, {}),
                ("mobilenetv2_035", 16, {}),
                ("tf_efficientnet_lite0", 8, {}),
                ("mixnet_s", 8, {}),
                ("efficientnet_cc_b0_4e", 16, {}),
                ("resnetblur50d", 8, ONE),
                ("resnetaa34d", 8, ONE),
                ("senet154", 8, ONE),
                ("resnest50d", 8, ONE),
                ("resnest50d_1s4x24d", 16, ONE),
            )
        ),
    ],
)
def test_dilated_networks_are_timms(name, output_stride, fields, record_property):
    theirs = {"layers": fields["stage_sizes"]} if fields else {}
    reference = timm.create_model(name, num_classes=7, output_stride=output_stride, **theirs)
    model = create_model(name, num_classes=7, output_stride=output_stride, **fields)
    check_logits(
        record_property,
        f"{name}, output stride {output_stride}",
        model,
        reference,
        size=(64, 96),
        dtype="float64",
        naming="timm",
    )


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet50", (2, 4, 8, 8, 8)),
        ("regnety_002", (2, 4, 8, 8, 8)),
        ("lcnet_035", (2, 4, 8, 8, 8)),
    ],
)
def test_features_have_the_stated_strides_and_the_parameters_stay(name, strides):
    model = create_model(name, output_stride=8)
    assert model.feature_strides == strides
    maps = jax.eval_shape(functools.partial(model.apply, method="features"), shapes_of(model), X)
    assert [64 // m.shape[1] for m in maps] == list(strides)
    assert our_shapes(model, "timm") == our_shapes(create_model(name), "timm")


def test_what_replaces_a_convolution_is_dilated_too():
    fields = {"conv": "cond_conv", "output_stride": 8, **ONE}
    wide, dense = (
        create_model("resnet18", **fields | given) for given in ({"output_stride": 32}, {})
    )
    jaxprs = [str(jax.make_jaxpr(m.apply)(shapes_of(m), X)) for m in (wide, dense)]
    assert ["rhs_dilation=(2, 2)" in jaxpr for jaxpr in jaxprs] == [False, True]


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("resnet18", {"output_stride": 4}, "output_stride=4: use 8, 16 or 32"),
        ("efficientnet_b0", {"output_stride": "8"}, "output_stride='8' must be an integer"),
        ("resnet18", {"multi_grid": (1, 0)}, "multi_grid=0 is below 1"),
        (
            "legacy_seresnet18",
            {"output_stride": 8},
            "SENet has no output_stride=8: use 32",
        ),
        ("vgg16", {"output_stride": 8}, "unknown field of vgg16 'output_stride'"),
        ("skresnet18", {"output_stride": 8}, "SelectiveKernel in stage 3 has no dilation, which"),
    ],
)
def test_what_cannot_be_dilated_is_refused(name, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        shapes_of(create_model(name, **fields))


def test_maps_can_be_had_after_any_block():
    model = create_model("resnet18", stage_sizes=(1, 2, 1), width=8, num_classes=0)
    x = np.random.default_rng(0).normal(size=(1, 32, 48, 3)).astype(np.float32)
    variables = initialise(model, jax.random.key(0), x.shape)

    def both(variables, x):
        taps = ((0, 0), (2, 0), (2, -1))
        return model.apply(variables, x, taps, method="maps"), model.apply(
            variables, x, method="features"
        )

    (stem, first, last), features = jax.jit(both)(variables, x)
    np.testing.assert_array_equal(stem, features[0])
    np.testing.assert_array_equal(last, features[2])
    assert first.shape == last.shape
    assert not np.allclose(first, last)
    for position in ((4, 0), (2, 2), (2, -3), (-1, 0)):
        with pytest.raises(InputError, match=r"stages 1 to 3 with \(1, 2, 1\) blocks"):
            model.apply(variables, x, [position], method="maps")


TINY = {"stage_sizes": (1,), "width": 8, "num_classes": 3}


@pytest.mark.parametrize("method", ["__call__", "features"])
@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((2, 3, 32, 32), np.float32), r"\(2, 3, 32, 32\) have their channels before"),
        (
            np.zeros((32, 32, 3), np.float32),
            r"images of shape \(32, 32, 3\) is not .*images\[None\]",
        ),
        (np.zeros((2, 32, 32, 3), np.uint8), r"images is of dtype uint8.*images\.astype"),
        (np.zeros((0, 32, 32, 3), np.float32), r"images of shape \(0, 32, 32, 3\) is empty"),
        (torch.zeros(2, 32, 32, 3), "must be an array of JAX or NumPy"),
    ],
    ids=lambda value: str(getattr(value, "shape", "")),
)
def test_what_is_no_batch_of_images_gets_a_sentence(images, sentence, method):
    model = create_model("resnet18", **TINY)
    with pytest.raises(InputError, match=sentence):
        model.init(jax.random.key(0), images, method=method)
    with pytest.raises(InputError, match=sentence):
        model.apply(shapes_of(model), images, method=method)


@pytest.mark.parametrize(
    ("change", "images", "sentence"),
    [
        (
            lambda given: given,
            X.update(shape=(2, 64, 64, 1)),
            r"not for such images.*\(7, 7, 1, 8\).*\(7, 7, 3, 8\)",
        ),
        (lambda given: {"params": given["params"]}, X, 'Flax says: .*"batch_stats" in "/bn1"'),
        (lambda _: {}, X, "are not those of this ResNet.*give apply all of them"),
        (
            lambda given: given | {"params": given["params"] | {"fc": {}}},
            X,
            'are not those of this ResNet.*"/fc"',
        ),
    ],
    ids=["grey", "no statistics", "nothing", "no head"],
)
def test_variables_that_are_not_its_own_get_a_sentence(change, images, sentence):
    model = create_model("resnet18", **TINY)
    with pytest.raises(InputError, match=sentence) as error:
        jax.eval_shape(model.apply, change(shapes_of(model)), images)
    assert len(str(error.value)) <= 600


def test_running_statistics_that_may_not_move_get_a_sentence():
    model = create_model("resnet18", **TINY)
    with pytest.raises(
        InputError, match=r"use apply\(\.\.\., mutable=\['batch_stats'\]\), and keep"
    ):
        jax.eval_shape(lambda given, x: model.apply(given, x, train=True), shapes_of(model), X)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet18", {"layer4_0", "layer4_1"}),
        ("vgg11_bn", {"conv5_1", "bn5_1", "conv5_2", "bn5_2"}),
        ("mobilenet_v3_small", {"blocks_5_0"}),
    ],
)
def test_the_last_stage_is_named(name, modules):
    model = create_model(name)
    assert set(model.last_stage) == modules <= shapes_of(model, X)["params"].keys()

"""From image files of several sizes to the classes that torchvision gives their pixels."""

import jax
import numpy as np
import pytest
import torch
from flax import linen as nn
from PIL import Image

from flaxattn import InputError, segment, weights
from flaxattn.images.geometry import resize
from flaxattn.models.segmentation import create_segmenter
from flaxattn.weights import SegmenterPreprocessing
from tests.images.pictures import noise
from tests.models.segmentation.parity import calibrated
from tests.prediction.traces import traces
from tests.torch_reference.torchvision_shim import torchvision

FCN = torchvision.models.segmentation.fcn
PREPROCESSING = SegmenterPreprocessing(33)
SIZES = [(40, 60), (60, 40), (80, 121)]


@pytest.fixture(scope="module")
def pair():
    """An FCN on a ResNet with a block a stage, its variables, and torchvision's."""
    resnet = torchvision.models.resnet
    body = resnet.ResNet(
        resnet.Bottleneck, [1] * 4, replace_stride_with_dilation=[False, True, True]
    )
    body = torchvision.models._utils.IntermediateLayerGetter(body, {"layer4": "out"})
    network = calibrated(FCN.FCN(body, FCN.FCNHead(2048, 5)))
    model = create_segmenter("fcn_resnet50", 5, aux=False, backbone={"stage_sizes": (1, 1, 1, 1)})
    state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    return model, weights.load(model, state, (1, 33, 33, 3)), network.float()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Of a few coarse patches, so that classes have areas."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(len(SIZES))]
    for i, (path, (height, width)) in enumerate(zip(paths, SIZES, strict=True)):
        patches = Image.fromarray(noise(4, 4, 3, seed=i))
        patches.resize((width, height), Image.Resampling.NEAREST).save(path)
    return paths


def test_the_classes_are_torchvisions(pair, pictures):
    model, variables, network = pair
    with traces() as shapes:
        found = segment(model, variables, pictures, preprocessing=PREPROCESSING)
        segment(model, variables, pictures[1], preprocessing=PREPROCESSING)
    assert shapes == [(2, 33, 49, 3), (1, 49, 33, 3)]
    transform = torchvision.transforms._presets.SemanticSegmentation(resize_size=33)
    for path, classes in zip(pictures, found, strict=True):
        image = Image.open(path)
        with torch.no_grad():
            best = network(transform(image)[None])["out"].argmax(1, keepdim=True)
        size = (image.height, image.width)
        expected = torch.nn.functional.interpolate(best.float(), size, mode="nearest-exact")
        assert classes.dtype == np.uint8
        assert classes.shape == size
        assert len(np.unique(classes)) > 1
        assert np.mean(classes == expected[0, 0].numpy()) > 0.99


def test_a_multiple_is_one_program_for_all_and_is_cut_off(pair, pictures):
    model, variables, _ = pair
    preprocessing = PREPROCESSING._replace(multiple=64)
    with traces() as shapes:
        found = segment(model, variables, pictures, preprocessing=preprocessing)
    assert shapes == [(3, 64, 64, 3)]
    placed = [preprocessing(path) for path in pictures]
    logits = jax.jit(model.apply)(variables, np.stack([one.image for one in placed]))
    for classes, scores, one in zip(found, np.asarray(logits), placed, strict=True):
        height, width = one.size
        best = scores[:height, :width].argmax(-1, keepdims=True).astype(np.uint8)
        expected = resize(best, *one.original_size.tolist(), interpolation="nearest")
        assert np.mean(classes == expected[..., 0]) > 0.99


class Many(nn.Module):
    """More classes than uint8 holds."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Conv(300, (1, 1))(x)


def test_what_cannot_be(pair, pictures, tmp_path):
    model, variables, _ = pair
    given = {"preprocessing": PREPROCESSING}
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:60])
    with pytest.raises(InputError, match=f"{broken} cannot be read as an image"):
        segment(model, variables, [pictures[0], broken], **given)
    with pytest.raises(InputError, match="there are no images"):
        segment(model, variables, [], **given)
    grey = PREPROCESSING._replace(mean=(0.5,), std=(0.5,))
    with pytest.raises(InputError, match=r"has 1 channels, but the kernel backbone/conv1 .* 3"):
        segment(model, variables, pictures, preprocessing=grey)
    kernel = {"Conv_0": {"kernel": np.ones((1, 1, 3, 300), "f"), "bias": np.zeros(300, "f")}}
    with pytest.raises(InputError, match="300 classes: segment tells 256 apart"):
        segment(Many(), {"params": kernel}, pictures, **given)

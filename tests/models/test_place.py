"""What cannot be placed is refused in a sentence, and what is given for nothing places nothing."""

from typing import ClassVar

import pytest
from flax import linen as nn

from flaxattn import InputError, create_model
from flaxattn.attention import (
    EfficientChannel,
    SqueezeExcite,
)
from flaxattn.models import ResNet
from flaxattn.models.place import place
from flaxattn.models.placement import Placement
from tests.models.probes import PLACES, SIZES, Probe, ProbeConv


@pytest.mark.parametrize(
    ("slot", "value", "sentence"),
    [
        ("attention", "sk", r"^sk replaces a convolution: pass conv=dict\(name='sk'\)\.$"),
        ("context", "sk", "sk replaces a convolution"),
        ("attention", {"name": "sk", "features": 64}, r"^sk replaces a convolution: pass conv="),
        ("conv", "se", r"^se keeps its input's shape.*pass attention=dict\(name='se'\)"),
        ("conv", "efficientnet_se", r"^efficientnet_se keeps its input's shape"),
        ("attention", "simplified_psa", "simplified_psa is a head"),
        ("attention", SqueezeExcite(), r"weights all blocks would share: pass the class"),
        ("attention", nn.Dense, "Dense does not say its role"),
        ("attention", 3, "=3 must be a"),
        ("attention", lambda **fields: Probe(**fields), "makes no layer"),
        ("attention", {"stages": (1,)}, "does not say which mechanism"),
        ("attention", "sse", "unknown attention 'sse': did you mean se"),
        ("attention", {"name": "se", "reducton": 4}, "field of se 'reducton': did you mean reduc"),
        ("attention", {"name": "se", "variant": "tim"}, "variant of se 'tim': did you mean timm"),
        ("attention", {"name": "se", "stages": (4,)}, "attention in stage 4.* stages 1 to 3"),
        ("attention", {"name": "se", "stages": 0}, "attention in stage 0"),
        (
            "attention",
            {"name": "se", "stages": ("abc",)},
            "attention in stage 'abc'.* stages 1 to 3",
        ),
        (
            "attention",
            {"name": "se", "stages": ()},
            r"stages=\(\) places nothing: use 'all' or",
        ),
        ("attention", {"name": "se", "blocks": ()}, r"blocks=\(\) places nothing"),
        ("context", Placement(Probe, blocks=[]), r"context blocks=\(\) places nothing"),
        ("attention", {"name": "se", "stages": 1.5}, "attention in stage 1.5"),
        ("attention", {"name": "se", "stages": None}, "attention in stage None"),
        (
            "attention",
            {"name": "se", "blocks": ("last",)},
            "block 'last' of stage 1.*blocks 0 to 1",
        ),
        ("attention", {"name": "se", "blocks": 0.5}, "block 0.5 of stage 1"),
        ("attention", {"name": "se", "parent": None}, "parent in the attention slot is for"),
        ("attention", {"name": "se", "stages": "last"}, "'all' or a tuple of 1 to 3"),
        ("attention", {"name": "se", "blocks": "first"}, "'all', 'last' or a tuple"),
        ("attention", {"name": "se", "blocks": (1,)}, "block 1 of stage 2.*blocks 0 to 0"),
        ("attention", {"name": "se", "blocks": -1}, "block -1 of stage 1"),
        ("attention", {"name": "se", "position": "middle"}, "position 'middle'.*mid"),
        ("attention", {"name": "se", "blocks": "gated"}, "blocks='gated': use 'all', 'last' or"),
        ("attention", {"name": "se", "after": "conv1"}, "after=.'conv1',.: only VGG's"),
        (
            "conv",
            {"name": "sk", "features": 8},
            "features in the conv slot is for the block to give",
        ),
        ("conv", {"name": "sk", "strides": 2}, "strides in the conv slot is for the block to give"),
        ("context", {"name": "se", "position": "out"}, "context has one position only"),
        ("attention", Placement(EfficientChannel, position="in"), "position 'in'"),
        ("conv", {"name": "sk", "share": True}, "share=True in the conv slot.*leave it out"),
        ("conv", Placement(ProbeConv, share=True), "share=True in the conv slot"),
        ("attention", {"name": "se", "share": "stage"}, "share='stage' must be True or False"),
        (
            "attention",
            {"name": "dia", "share": True, "position": "mid"},
            "position 'mid': DenseImplicit carries a state.*at position 'out' only",
        ),
        (
            "context",
            {"name": "dia", "share": True},
            "share=True in the context slot.* the attention slot at position 'out' only",
        ),
    ],
    # Only texts: others would show their addresses, and each worker of pytest-xdist has its own.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_placed_is_refused_in_a_sentence(slot, value, sentence):
    with pytest.raises(InputError, match=sentence):
        place(slot, value, PLACES)
    with pytest.raises(InputError, match=sentence):
        ResNet(SIZES, **{slot: value})


def test_role_counts_for_user_layers_too():
    class Unfinished(nn.Module):
        role: ClassVar[str] = "convolution"

    with pytest.raises(InputError, match="Unfinished replaces a convolution"):
        place("attention", Unfinished, PLACES)


def test_nothing_is_placed_for_none_and_false():
    assert place("attention", None, PLACES) is None
    assert place("attention", False, PLACES) is None
    assert create_model("resnet18", attention=False).attention is None
    assert create_model("seresnet18", attention=False).attention is False


@pytest.mark.parametrize(
    ("name", "stages", "sentence"),
    [
        ("mobilenetv3_large_100", (2,), r"stage 2 places nothing: .* in stages 3, 5, 6;"),
        ("tf_efficientnetv2_b0", (1, 2, 3), r"stage 1 places nothing: .* in stages 4, 5, 6;"),
        ("tf_efficientnetv2_b0", (4, 2), "stage 2 places nothing"),
    ],
)
def test_a_stage_that_has_no_block_to_place_in_is_refused(name, stages, sentence):
    """By default attention stands where the architecture has its own."""
    cbam = {"name": "cbam", "stages": stages}
    with pytest.raises(InputError, match=sentence):
        create_model(name, attention=cbam)
    assert create_model(name, attention={**cbam, "blocks": "all"}) != create_model(name)
    create_model(name, attention={"name": "cbam", "stages": (5, 6)})

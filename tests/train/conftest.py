"""The smallest runs of the configs for a CPU, on the prepared sets and a few scenes.

Their networks have a stage or two, for a second in place of three to compile a step.
"""

import pytest

from configs import digit_groups, digits, voc_classify, voc_detect, voc_segment


@pytest.fixture
def config(data_dir):
    """configs/digits.py:se,debug: 11 steps of 64 images."""
    return small(digits.get_config("se,debug"), data_dir)


@pytest.fixture
def groups_config(data_dir):
    """configs/digit_groups.py:se,debug: 6 steps of 64 images."""
    return small(digit_groups.get_config("se,debug"), data_dir)


@pytest.fixture
def classify_config(scenes_root):
    """configs/voc_classify.py:scenes,sca,debug: 4 steps of 8 images, one stage."""
    config = voc_classify.get_config("scenes,sca,debug")
    config.model.update(stage_sizes=(1,), width=(8,))
    config.model.attention.stages = (1,)
    return of_few(config, scenes_root)


@pytest.fixture
def segment_config(scenes_root):
    """configs/voc_segment.py:scenes,debug: 4 steps of 8 images, two stages."""
    config = voc_segment.get_config("scenes,debug")
    config.model.backbone.update(stage_sizes=(1, 1), width=(8, 8))
    config.model.update(places=((1, -1), (2, -1)), aux_place=(2, -1))
    return of_few(config, scenes_root)


@pytest.fixture
def detect_config(scenes_root):
    """configs/voc_detect.py:scenes,debug with the smallest of detectors, on few pictures.

    Its norms are frozen: others, as everywhere, put their moments together over the devices.
    """
    config = voc_detect.get_config("scenes,debug")
    config.data.name, config.data.data_dir = "", str(scenes_root)
    config.model.name = "fasterrcnn_resnet50_fpn"
    config.model.body.width = config.model.body.stem_width = 8
    config.model.body.stage_sizes = (1, 1)
    config.model.taps = ((1, -1), (2, -1))
    config.model.proposals.anchor_sizes = ((16,), (32,), (64,))
    config.model.features = 8
    config.model.heads.conv_features = (8,)
    config.model.heads.hidden_features = 16
    config.epochs = 4.0
    config.data.canvas = (64, 64)
    config.data.min_size, config.data.max_size = (48,), 64
    return config


def of_few(config, scenes_root):
    """The config on the few scenes of `scenes_root`."""
    config.data.name = "few"
    config.data.data_dir = str(scenes_root)
    config.eval_batch_size = 8
    config.epochs = 4.0
    config.optim.warmup_epochs = 1.0
    config.log_every = 1
    config.checkpoint_every = 2
    return config


def small(config, data_dir):
    config.model.stage_sizes = config.model.attention.stages = (1,)
    config.data.data_dir = data_dir
    return config

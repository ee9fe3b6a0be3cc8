"""The smallest runs of configs/digits.py and digit_groups.py, on the prepared sets.

Their network has one stage, for a second in place of three to compile a step.
"""

import pytest

from configs import digit_groups, digits


@pytest.fixture
def config(data_dir):
    """configs/digits.py:se,debug: 11 steps of 64 images."""
    return small(digits.get_config("se,debug"), data_dir)


@pytest.fixture
def groups_config(data_dir):
    """configs/digit_groups.py:se,debug: 6 steps of 64 images."""
    return small(digit_groups.get_config("se,debug"), data_dir)


def small(config, data_dir):
    config.model.stage_sizes = config.model.attention.stages = (1,)
    config.data.data_dir = data_dir
    return config

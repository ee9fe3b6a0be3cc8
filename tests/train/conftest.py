"""The smallest runs of configs/digits.py and digit_groups.py, on the prepared sets."""

import pytest

from configs import digit_groups, digits


@pytest.fixture
def config(data_dir):
    """configs/digits.py:se,debug: 11 steps of 64 images."""
    config = digits.get_config("se,debug")
    config.data.data_dir = data_dir
    return config


@pytest.fixture
def groups_config(data_dir):
    """configs/digit_groups.py:se,debug: 6 steps of 64 images."""
    config = digit_groups.get_config("se,debug")
    config.data.data_dir = data_dir
    return config

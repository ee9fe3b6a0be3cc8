"""The smallest run of configs/digits.py, on the prepared digits."""

import pytest

from configs.digits import get_config


@pytest.fixture
def config(data_dir):
    """configs/digits.py:se,debug: 11 steps of 64 images."""
    config = get_config("se,debug")
    config.data.data_dir = data_dir
    return config

"""The config that reads the prepared digits."""

import copy

import pytest

CONFIG = {
    "source": "tfds",
    "name": "digits",
    "image_size": 8,
    "channels": 1,
    "mean": (0.3,),
    "std": (0.4,),
    "eval_resize": 8,
    "crop_mode": "center",
    "augment": {
        "crop": "padded",
        "scale": (0.5, 1.0),
        "ratio": (0.75, 1.25),
        "padding": 1,
        "flip": False,
        "randaugment_ops": 0,
        "randaugment_magnitude": 9,
        "erasing": 0.0,
    },
}


@pytest.fixture
def config(data_dir):
    return {**copy.deepcopy(CONFIG), "data_dir": data_dir}

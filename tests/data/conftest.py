"""The digits, prepared once for all tests of this folder, and the config that reads them."""

import copy

import pytest

from flaxattn.data import digits

CONFIG = {
    "source": "tfds",
    "name": "digits",
    "image_size": 8,
    "channels": 1,
    "mean": (0.3,),
    "std": (0.4,),
    "eval_resize": 8,
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


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder in which `digits` is prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    digits.prepare(folder)
    return str(folder)


@pytest.fixture
def config(data_dir):
    return {**copy.deepcopy(CONFIG), "data_dir": data_dir}

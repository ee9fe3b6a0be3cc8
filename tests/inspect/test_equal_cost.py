"""What a network costs, and the plain one that costs as much."""

import jax
import pytest

from configs import digits
from flaxattn.errors import InputError
from flaxattn.inspect import equal_cost
from flaxattn.inspect.cost import cost
from flaxattn.models import create_model
from flaxattn.train.experiment import make_experiment


@pytest.fixture
def config(data_dir):
    """configs/digits.py with one stage, without attention."""
    config = digits.get_config("none")
    config.model.update(stage_sizes=(1,), width=8)
    config.data.data_dir = data_dir
    return config


def test_the_plain_network_is_the_narrowest_that_costs_as_much(config):
    def multiply_adds(width):
        fields = {**config.model.to_dict(), "width": width}
        return cost(create_model(num_classes=10, **fields), (1, 8, 8, 1)).macs

    wide, width = equal_cost.widened(config, multiply_adds(10) + 1)
    assert (width, wide.model.width, config.model.width) == (11, 11, 8)
    assert equal_cost.widened(config, multiply_adds(10))[1] == 10
    config.model.update(stage_sizes=(1, 1))
    config.model = {**config.model.to_dict(), "width": (8, 24)}
    wide, width = equal_cost.widened(config, multiply_adds((9, 27)))
    assert (width, tuple(wide.model.width)) == (9, (9, 27))


def test_no_plain_network_can_be_made(config, monkeypatch):
    monkeypatch.setattr(equal_cost, "WIDEST", 1)
    with pytest.raises(InputError, match="up to 1 times as wide: add --no-equal-cost"):
        equal_cost.widened(config, 10**9)
    config.init.weights = "model.npz"
    with pytest.raises(
        InputError, match=r"no wider network starts from init\.weights='model\.npz'"
    ):
        equal_cost.widened(config, 10**9)
    del config.model.width
    with pytest.raises(InputError, match=r"none of model\.width, .*add --no-equal-cost"):
        equal_cost.widened(config, 10**9)


def test_what_a_network_costs(config):
    config.model.attention = {"name": "se", "reduction": 4}
    experiment = make_experiment(config, devices=jax.devices()[:1])
    spent = equal_cost.spent_by(experiment)
    counted = cost(create_model(num_classes=10, **config.model), (1, 8, 8, 1))
    assert (spent.parameters, spent.macs) == counted
    maps = 4 * 64 * (1 + 8)  # bytes of the image and of one map
    assert maps < spent.bytes < 100 * maps

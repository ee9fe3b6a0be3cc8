"""Runs that start from weights: what is read, what is new, what is grafted, what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn import InputError, create_model, initialise
from flaxattn.train.experiment import make_experiment
from flaxattn.train.loop import Preempted, run
from flaxattn.train.start import start_from
from flaxattn.weights import to_torch, write

SHAPE = (1, 8, 8, 1)


@pytest.fixture
def plain(config):
    """The fields of the run's network without attention."""
    return {name: v for name, v in config.model.to_dict().items() if name != "attention"}


@pytest.fixture
def trained(plain):
    """Variables of that network for six classes."""
    return initialise(create_model(**plain, num_classes=6), jax.random.key(9), SHAPE)


@pytest.fixture
def hub(trained, tmp_path):
    """A directory as timm's repositories are."""
    folder = tmp_path / "hub"
    folder.mkdir()
    stated = {"architecture": "resnet10", "num_classes": 6}
    cfg = {"input_size": [1, 8, 8], "mean": [0.25], "std": [0.5]}
    (folder / "config.json").write_text(json.dumps(stated | {"pretrained_cfg": cfg}))
    write(folder / "model.safetensors", to_torch(trained))
    return str(folder)


def arrays(variables):
    return {path: np.asarray(array) for path, array in flatten_dict(dict(variables)).items()}


def test_the_seed_decides(config):
    kernels = []
    for seed in (0, 0, 1):
        config.seed = seed
        kernels.append(make_experiment(config).start()["params"]["conv1"]["kernel"])
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_a_new_head_and_a_graft_that_changes_nothing(config, plain, trained, hub):
    grafted = config.model.attention.to_dict()
    del config.model.attention
    config.init.weights, config.init.allow_new = hub, ("head",)
    before = arrays(make_experiment(config).start())
    for path, array in arrays(trained).items():
        assert np.array_equal(before[path], array) == (path[1] != "fc")

    config.init.graft.attention = grafted
    experiment = make_experiment(config)
    after = arrays(experiment.start())
    (state,) = experiment.abstract_states
    expected = flatten_dict({"params": state.params, "batch_stats": state.batch_stats})
    assert {path: x.shape for path, x in after.items()} == {p: x.shape for p, x in expected.items()}
    assert {path[-3] for path in after.keys() - before.keys()} == {"se"}
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    logits = create_model(**plain, num_classes=10).apply(unflatten_dict(before), x)
    np.testing.assert_allclose(
        experiment.model.apply(unflatten_dict(after), x), logits, rtol=1e-5, atol=1e-6
    )


def test_attention_placed_by_the_model_may_be_new(config, hub):
    config.init.weights = hub
    config.init.allow_new = ("head", "attention")
    assert "se" in make_experiment(config).start()["params"]["layer1_0"]


def test_a_run_that_goes_on_needs_its_weights_no_more(config, hub, tmp_path, monkeypatch):
    del config.model.attention
    config.init.weights, config.init.allow_new = hub, ("head",)
    whole = run(config, tmp_path / "whole")
    monkeypatch.setattr(
        "flaxattn.train.checkpoint.Checkpoints.preempted", lambda _, step: step == 5
    )
    with pytest.raises(Preempted):
        run(config, tmp_path / "halves")
    monkeypatch.undo()
    shutil.rmtree(hub)
    assert run(config, tmp_path / "halves") == whole


def test_weights_bring_their_architecture_and_normalisation(config, hub):
    config.model.name = "resnet18"
    start_from(config, hub)
    assert (config.model.name, config.init.weights) == ("resnet10", hub)
    assert (config.data.mean, config.data.std, config.data.channels) == ((0.25,), (0.5,), 1)
    assert config.init.allow_new == ("head",)


def test_a_run_brings_the_fields_of_its_model_too(config, plain, trained, tmp_path):
    fields = {field: value for field, value in plain.items() if field != "name"}
    stated = {"architecture": plain["name"], "model_fields": fields, "input_size": (1, 8, 8)}
    write(tmp_path / "model.npz", trained, config=stated | {"mean": (0.25,), "std": (0.5,)})
    config.model = {"name": "resnet50", "dropout": 0.1}
    start_from(config, str(tmp_path))
    assert config.model.to_dict() == {**plain, "dropout": 0.1}


def test_refuses(config, hub, tmp_path):
    def refused(match):
        with pytest.raises(InputError, match=match):
            run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    config.init.graft.attention = {"name": "eca"}
    refused(r"init\.graft=.* has no trained network .* or place the layers by model\.attention")
    config.init.weights = hub
    refused("the attention slot of this ResNet is taken")
    config.init.graft = {"atention": {"name": "eca"}}
    refused(r"unknown slot in init\.graft 'atention': did you mean attention")
    config.init.graft = {}
    refused("do not fit ResNet")
    config.init.weights = str(tmp_path / "absent.pth")
    refused("there is no weight file")


def test_a_checkpoint_without_an_architecture_is_refused(config, trained, tmp_path):
    write(tmp_path / "file.safetensors", to_torch(trained))
    with pytest.raises(
        InputError, match=r"no config names the architecture .* --config\.model\.name"
    ):
        start_from(config, str(tmp_path / "file.safetensors"))

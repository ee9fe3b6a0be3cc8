import json

import pytest

from flaxattn.errors import InputError
from flaxattn.train import workdir
from flaxattn.train.config import base_config


def test_a_new_directory_is_anybodys(tmp_path):
    workdir.require_same(tmp_path / "new", base_config())
    assert not (tmp_path / "new").exists()


def test_a_claimed_directory_is_its_owners(tmp_path):
    config = base_config()
    workdir.claim(tmp_path, config)
    workdir.require_same(tmp_path, config)
    config.log_every = 7
    config.data.workers = 3
    workdir.require_same(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["model"]["name"] == "resnet50"


def test_another_experiment_is_refused_with_what_differs(tmp_path):
    config = base_config()
    workdir.claim(tmp_path, config)
    config.optim.learning_rate = 0.3
    config.model.name = "resnet18"
    with pytest.raises(InputError) as error:
        workdir.require_same(tmp_path, config)
    assert "holds another experiment" in str(error.value)
    assert "model.name: 'resnet50' there, 'resnet18' here" in str(error.value)
    assert "optim.learning_rate: 0.1 there, 0.3 here" in str(error.value)


def test_a_field_younger_than_the_directory_had_its_default(tmp_path):
    config = base_config()
    workdir.claim(tmp_path, config)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    del fields["task"], fields["data"]["augment"]["erasing"]
    path.write_text(json.dumps(fields))
    workdir.require_same(tmp_path, config)
    config.task = "multilabel"
    with pytest.raises(InputError, match="task: 'classification' there, 'multilabel' here"):
        workdir.require_same(tmp_path, config)


def test_checkpoints_of_nobody_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"holds checkpoints but no config\.json"):
        workdir.require_same(tmp_path, base_config())

"""A config has the fields of `base_config`, each of its kind, and numbers that a run can have."""

import sys

import pytest
from absl import flags
from ml_collections import ConfigDict

import train
from flaxattn.errors import InputError
from flaxattn.train.config import base_config, require_valid


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"batch_size": "64"}, "batch_size='64' must be an integer."),
        ({"epochs": float("nan")}, "epochs=nan must be a finite number."),
        ({"data.mean": (0.5, "a", 0.5)}, r"data.mean=\(.*\) must be a sequence of finite numbers."),
        ({"optim.nesterov": 1}, "optim.nesterov=1 must be True or False."),
        ({"optim": 3}, "optim=3 must be a mapping."),
        ({"model": "resnet50"}, "model='resnet50' must be a mapping."),
        (
            {"optim.lr": 0.1},
            r"unknown config field 'optim\.lr': did you mean .*optim\.learning_rate",
        ),
    ],
)
def test_fields_of_another_kind_or_name(fields, sentence):
    config = ConfigDict(base_config().to_dict(), type_safe=False)
    for name, value in fields.items():
        *path, last = name.split(".")
        inner = config
        for part in path:
            inner = inner[part]
        inner[last] = value
    with pytest.raises(InputError, match=sentence):
        require_valid(config)


def test_a_config_that_lacks_a_field():
    config = base_config()
    require_valid(config)
    del config.optim.momentum
    with pytest.raises(InputError, match=r"lacks optim\.momentum, which must be a finite n"):
        require_valid(config)
    with pytest.raises(InputError, match=r"config=\{\} must be a ConfigDict"):
        require_valid({})


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.seed=x"], "invalid literal|Unable to|seed"),
        (["--config.optim.lr=1"], r"unknown config field 'optim.lr': did you mean optim\."),
        (["--config.optim=1"], "unknown config field 'optim'"),
        (["--nope"], r"Unknown command line flag 'nope': see `python train.py --help`\."),
        (["--num_processes=x"], "invalid literal for int"),
        (["--config=nothing.py"], "No such file or directory"),
        (["--config=pyproject.toml"], r"\(pyproject.toml, line \d+\): see"),
        (["--config=flaxattn/errors.py"], r"has no get_config\(\): see those in configs/"),
        (["--config=configs/digits.py:x"], "unknown"),
    ],
)
def test_flags_that_cannot_be(monkeypatch, arguments, sentence):
    named = any(argument.startswith("--config=") for argument in arguments)
    argv = ["train.py", *([] if named else ["--config=configs/digits.py"]), *arguments]
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the last one's
    monkeypatch.setattr(sys, "argv", argv)
    try:
        with pytest.raises(InputError, match=sentence) as error:
            train.parse_flags(argv)
    finally:
        flags.FLAGS.unparse_flags()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 600

"""Writes flaxattn/weights/architectures.json: python -m tests.weights.architectures"""

import json
from pathlib import Path

import jax

import flaxattn.weights
from flaxattn.layers.abstract_variables import abstract_variables
from flaxattn.models import MODELS, create_model
from flaxattn.weights.architecture import numbers

FILE = Path(flaxattn.weights.__file__).with_name("architectures.json")


def numbers_of(name):
    variables = abstract_variables(create_model(name), (1, 224, 224, 3))
    return numbers(leaf.shape for leaf in jax.tree.leaves(variables))


def text(known):
    """A line for each model."""
    lines = [f"  {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in known.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text({name: numbers_of(name) for name in MODELS}), encoding="utf-8")

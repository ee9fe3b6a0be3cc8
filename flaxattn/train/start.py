"""What a run starts from: random numbers, or the weights that its config names."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from flaxattn.errors import InputError, unknown
from flaxattn.images.preprocessing import Preprocessing
from flaxattn.layers.initialise import initialise_for
from flaxattn.models.graft import graft, grafted
from flaxattn.train.report import log
from flaxattn.weights import fetch, load_pretrained

SLOTS = ("attention", "conv", "context")


def full_model(model: nn.Module, init: ConfigDict) -> nn.Module:
    """What is trained: `model` with the layers that `config.init` grafts into it.

    Raises InputError for a graft without weights, and for what `graft` refuses.
    """
    slots = init.graft.to_dict()
    if not slots:
        return model
    for slot in slots.keys() - set(SLOTS):
        raise unknown("slot in init.graft", slot, SLOTS)
    if not init.weights:
        raise InputError(
            f"init.graft={slots} has no trained network to go into: name its weights in "
            f"init.weights, or place the layers by model.{next(iter(slots))}."
        )
    return grafted(model, **slots)


def starting_variables(
    model: nn.Module, init: ConfigDict, *, inputs: Sequence[jax.ShapeDtypeStruct], seed: int
) -> Mapping[str, Any]:
    """The variables of `full_model` at step 0, as NumPy arrays; the same in every process.

    Args:
        model: the config's, without what is grafted.
        init: `config.init`.
        inputs: the model's positional arguments, abstract. The first are images.
        seed: of all that is drawn.

    Raises InputError for weights that cannot be read or do not fit (`load_pretrained`).
    """
    if not init.weights:
        return initialise_for(model, jax.random.key(seed), inputs)
    checkpoint = fetch(init.weights, revision=init.revision or None)
    shape = inputs[0].shape
    loaded = load_pretrained(
        model,
        checkpoint,
        shape,
        naming=init.naming or None,
        prefix=init.prefix,
        allow_new=init.allow_new,
        seed=seed,
    )
    if jax.process_index() == 0:
        log.info("weights: %s (names: %s)", checkpoint.path, loaded.naming)
        if loaded.fresh:
            log.info("new in them: %s", ", ".join(loaded.fresh))
    if not init.graft:
        return loaded.variables
    _, variables = graft(
        model, loaded.variables, input_shape=shape, seed=seed, **init.graft.to_dict()
    )
    return jax.tree.map(np.asarray, variables)


def start_from(config: ConfigDict, source: str) -> None:
    """Has `config` start from a checkpoint, with its architecture, normalisation and a new head.

    The model has the fields that the checkpoint states, as of a run of train.py; those in
    `config.model` prevail.

    Raises InputError for a checkpoint that cannot be got, or whose config names no architecture.
    """
    checkpoint = fetch(source)
    name = checkpoint.config.get("architecture")
    if not isinstance(name, str):
        raise InputError(
            f"no config names the architecture of {source}: give the experiment's model its name "
            f"by --config.model.name, and these weights by --config.init.weights."
        )
    preprocessing = Preprocessing.of(checkpoint.config)
    config.model = ConfigDict({**checkpoint.model_fields, **config.model.to_dict(), "name": name})
    config.init.weights = source
    config.init.allow_new = ("head",)
    config.data.channels = preprocessing.input_size[-1]
    config.data.mean, config.data.std = preprocessing.mean, preprocessing.std

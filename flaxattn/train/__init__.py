"""Experiments from a config to a result: state, steps, loop, checkpoints, reports."""

from flaxattn.extras import require_extra

require_extra("train", doing="training")

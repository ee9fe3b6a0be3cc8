"""Experiments from a config to a result: state, steps, loop, checkpoints, reports."""

"""Compiled programs that outlive their process."""

import os

import jax

FOLDER = "~/.cache/flaxattn/xla"


def keep_compiled(folder: str = FOLDER) -> None:
    """Has JAX keep compiled programs in `folder`, unless JAX_COMPILATION_CACHE_DIR names one."""
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))

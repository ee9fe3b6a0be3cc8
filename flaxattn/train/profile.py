"""A window of steps under JAX's profiler."""

from pathlib import Path

import jax
from ml_collections import ConfigDict


class Profiler:
    """Traces steps `window.start + 1` to `window.start + window.steps` into `directory`."""

    def __init__(self, directory: Path, window: ConfigDict):
        self._directory = directory
        self._first = window.start + 1
        self._last = window.start + window.steps
        self._tracing = False

    def before(self, step: int) -> None:
        if step == self._first and self._last >= step:
            jax.profiler.start_trace(self._directory)
            self._tracing = True

    def after(self, step: int, results) -> None:
        if step == self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends the trace; a window that reaches past the run ends with it."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False

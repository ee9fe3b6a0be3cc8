"""What a run tells people: log lines, a progress bar, TensorBoard events, a history, its curves."""

import datetime
import json
import logging
import time
from pathlib import Path

import absl.logging
import jax
import matplotlib.figure
import numpy as np
from matplotlib.ticker import LogLocator
from tensorboardX import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from flaxattn.images.decoding import to_pillow

log = logging.getLogger("flaxattn")


def log_to_stderr(*, level: int = logging.INFO) -> None:
    """Shows the log lines of a run from `level` on, and of the libraries below it only warnings."""
    absl.logging.set_verbosity(absl.logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(level)
    log.propagate = False


class Report:
    """Tells people how a run goes; silent on all processes but 0.

    Writes `metrics.jsonl` (one JSON object a line: step, split, and the metrics), TensorBoard
    events under `tensorboard/`, `pictures/` of each evaluation, and `curves.png` at the end. Rows
    after `start_step`, left by a run that was stopped between a log line and its next checkpoint,
    are dropped: they come again.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        headline: str,
    ):
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._headline = headline
        # Where the interval of pure training began: (step, seconds). None until a step has been
        # compiled and run, and after whatever is not training.
        self._began: tuple[int, float] | None = None
        self._writes = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        self._curves = workdir / "curves.png"
        self._pictures = workdir / "pictures"
        if not self._writes:
            return
        # Rows that come again: those after the checkpoint, and the last evaluation.
        kept = [
            row
            for row in read_history(self._path)
            if row["step"] <= start_step and (row["step"], row["split"]) != (total_steps, "test")
        ]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(self._path)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
        self._redirect = logging_redirect_tqdm([log])
        self._redirect.__enter__()
        # disable=None: no bar where the output is not a terminal.
        self._bar = tqdm(total=total_steps, initial=start_step, unit="step", disable=None)

    def advance(self, step: int, results) -> None:
        """One more step is under way; `results` are waited for only to start the clock."""
        if self._began is None:
            jax.block_until_ready(results)
            self._began = (step, time.perf_counter())
        if self._writes:
            self._bar.update()

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """One log line for the steps since the last."""
        words = [f"step {step}/{self._total_steps}  epoch {step / self._steps_per_epoch:.2f}"]
        if self._began and step > self._began[0]:
            seconds_per_step = (time.perf_counter() - self._began[1]) / (step - self._began[0])
            metrics = metrics | {"images_per_second": self._batch_size / seconds_per_step}
            left = datetime.timedelta(seconds=round((self._total_steps - step) * seconds_per_step))
            words += [_in_words(metrics), f"ETA {left}"]
        else:
            words += [_in_words(metrics)]
        self._write(step, "train", metrics, "  ".join(words))
        self._began = (step, time.perf_counter())

    def evaluation(
        self, step: int, metrics: dict[str, float], pictures: np.ndarray | None = None
    ) -> None:
        """One log line for a pass over the test split, and pictures uint8 (H, W, 3) of it."""
        words = f"step {step}/{self._total_steps}  test  {_in_words(metrics)}"
        self._write(step, "test", metrics, words)
        self._began = None
        if self._writes and pictures is not None:
            self._pictures.mkdir(exist_ok=True)
            path = self._pictures / f"step_{step:0{len(str(self._total_steps))}}.png"
            temporary = path.with_suffix(".tmp")
            to_pillow(pictures).save(temporary, format="PNG")
            temporary.replace(path)
            self._events.add_image("test/pictures", pictures, step, dataformats="HWC")
            self._events.flush()

    def close(self) -> None:
        """Draws the curves of what there is, and lets go of the terminal and the files."""
        if not self._writes:
            return
        self._bar.close()
        self._redirect.__exit__(None, None, None)
        self._events.close()
        if history := read_history(self._path):
            draw_curves(history, self._curves, headline=self._headline)

    def _write(self, step: int, split: str, metrics: dict[str, float], words: str) -> None:
        if not self._writes:
            return
        log.info(words)
        with self._path.open("a") as history:
            history.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        for name, value in metrics.items():
            self._events.add_scalar(f"{split}/{name}", value, step)
        self._events.flush()


def read_history(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl, the last of each step and split; a half-written line is none."""
    if not path.exists():
        return []
    *lines, _ = path.read_text().split("\n")
    rows = [json.loads(line) for line in lines]
    return list({(row["step"], row["split"]): row for row in rows}.values())


def draw_curves(history: list[dict], path: Path, *, headline: str) -> None:
    """Loss and headline metric against the step as a PNG, of each split that has them."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", headline), strict=True):
        for split, style in (("train", "-"), ("test", "o-")):
            rows = [row for row in history if row["split"] == split and metric in row]
            if rows:
                points = zip(*((row["step"], row[metric]) for row in rows), strict=True)
                axes.plot(*points, style, ms=3, label=split)
                axes.legend()
        axes.set(xlabel="step", ylabel=metric)
        axes.grid(alpha=0.3)
    loss = figure.axes[0]
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter("")
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)


def _in_words(metrics: dict[str, float]) -> str:
    def word(name: str, value: float) -> str:
        if name == "images_per_second":
            return f"images/s {value:,.0f}"
        return f"{name} {value:.4g}"

    return "  ".join(word(name, value) for name, value in metrics.items() if name != "count")

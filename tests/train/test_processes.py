"""train.py as people run it: real processes, real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.train.runs import history, newest_state, newest_step, rows

ROOT = Path(__file__).parents[2]
# The flags of conftest.py, but for the one of the eight devices.
_, _, QUICK = os.environ["XLA_FLAGS"].partition(" ")
WITHOUT_TORCH = str(ROOT / "tests" / "train" / "without_torch")


@pytest.fixture
def start():
    """Starts train.py in a process of its own; whatever still runs after the test is killed."""
    started = []

    def start(workdir, *arguments, config="digits.py:se,debug", **environment):
        """With one CPU device, compiled as all tests are; all output goes to one pipe."""
        process = subprocess.Popen(
            [
                sys.executable,
                ROOT / "train.py",
                f"--config={ROOT}/configs/{config}",
                f"--workdir={workdir}",
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"XLA_FLAGS": QUICK, "PYTHONPATH": WITHOUT_TORCH} | environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def finish(process, timeout=300):
    """(exit status, output)."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


@pytest.fixture
def flags(data_dir):
    """Of a small network, whose steps are logged one by one."""
    small = ["--config.model.stage_sizes=(1,)", "--config.model.attention.stages=(1,)"]
    return [f"--config.data.data_dir={data_dir}", "--config.log_every=1", *small]


@pytest.mark.parametrize(
    "moments",
    [
        ("stepping", "saving"),
        pytest.param(
            ("starting", "stepping", "saving", "saving", "evaluated"), marks=pytest.mark.slow
        ),
    ],
    ids=["two", "five"],
)
def test_sigkill_at_any_moment_costs_nothing(tmp_path, flags, start, moments):
    """Killed while starting, between saves, in two saves and before its result is written."""
    flags += ["--config.epochs=2.0", "--config.checkpoint_every=3"]
    assert_sigkill_costs_nothing(
        tmp_path, lambda workdir: start(workdir, *flags), moments, last_step=44
    )


# Debug runs on few pictures, made smaller still by flags.
OF_SCENES = {
    "voc_classify.py:scenes,debug": ["model.width=(8, 8, 8, 8)"],
    "voc_segment.py:scenes,debug": ["model.head.features=8"],
    "voc_detect.py:scenes,debug": [
        "model.body.width=8",
        "model.body.stem_width=8",
        "model.features=8",
        "model.heads.conv_features=(8,)",
        "model.heads.hidden_features=16",
        "data.canvas=(64, 64)",
        "data.min_size=(48,)",
        "data.max_size=64",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("config", OF_SCENES)
def test_sigkill_costs_nothing_in_other_tasks(tmp_path, scenes_root, start, config):
    fields = ["data.name=few", f"data.data_dir={scenes_root}", "epochs=12.0", "eval_batch_size=8"]
    fields += ["log_every=1", "checkpoint_every=3", "optim.warmup_epochs=1.0", *OF_SCENES[config]]
    flags = [f"--config.{field}" for field in fields]
    assert_sigkill_costs_nothing(
        tmp_path,
        lambda workdir: start(workdir, *flags, config=config),
        ("stepping", "saving"),
        last_step=12,
    )


def assert_sigkill_costs_nothing(tmp_path, begin, moments, *, last_step):
    """A run that `begin(workdir)` starts, killed at the moments, ends as one that is left alone."""
    whole, workdir = tmp_path / "whole", tmp_path / "killed"
    status, output = finish(begin(whole))
    assert status == 0, output

    def starting():
        return (workdir / "config.json").exists()

    def stepping():
        """Whether the process just started has taken a step: a row of its own is the last."""
        metrics = workdir / "metrics.jsonl"
        return metrics.exists() and metrics.stat().st_mtime > began and rows_unsaved(metrics)

    def saving():
        return stepping() and any("tmp" in path.name for path in workdir.glob("checkpoints/*"))

    def evaluated():
        """All is done but the curves, the end of the last save, and the result."""
        return (last_step, "test") in rows(workdir)

    known = {call.__name__: call for call in (starting, stepping, saving, evaluated)}
    for moment in moments:
        began = time.time()
        kill_at(known[moment], begin(workdir))
    assert not (workdir / "result.json").exists()
    status, output = finish(begin(workdir))
    assert status == 0, output

    assert newest_step(workdir) == newest_step(whole) == last_step
    jax.tree.map(np.testing.assert_array_equal, newest_state(workdir), newest_state(whole))
    assert rows(workdir) == rows(whole)
    assert files_of(workdir) == files_of(whole)


def files_of(workdir):
    """What lies there, but for TensorBoard's events; Orbax gives its arrays' files random names."""
    paths = [path.relative_to(workdir) for path in workdir.rglob("*")]
    paths = [path.parent if path.parent.name == "d" else path for path in paths]
    return {path for path in paths if path.parts[0] != "tensorboard"}


def rows_unsaved(metrics):
    """Whether there are rows of steps after the newest checkpoint."""
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    saved = [int(p.name) for p in metrics.parent.glob("checkpoints/*") if p.name.isdigit()]
    return max(steps, default=0) > max(saved, default=0)


def kill_at(moment, process):
    """SIGKILLs a run as soon as `moment()` is true."""
    while not moment():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


X64 = {"JAX_ENABLE_X64": "1"}


@pytest.mark.parametrize(
    ("dtype", "peak_rate", "tolerance"),
    [
        ("float32", 0.02, 1e-5),
        pytest.param("float64", 0.1, 1e-12, marks=pytest.mark.slow),
    ],
)
def test_two_processes_have_the_losses_of_one(tmp_path, flags, start, dtype, peak_rate, tolerance):
    """Of a debug run, evaluation included; in float32 at a rate that test_loop.py explains."""
    flags += [f"--config.dtype={dtype}", f"--config.optim.learning_rate={peak_rate}"]
    flags += ["--config.eval_batch_size=100"]
    status, output = finish(start(tmp_path / "one", *flags, **X64))
    assert status == 0, output

    results = [finish(process) for process in start_two(start, tmp_path / "two", *flags, **X64)]
    assert [status for status, _ in results] == [0, 0], results
    outputs = [output for _, output in results]
    assert "2 x CPU (cpu) in 2 processes" in outputs[0]
    result_lines = [output.strip().splitlines()[-1] for output in outputs]
    assert result_lines[0] == result_lines[1]
    assert result_lines[0].endswith("of 359)")
    assert_same_losses(tmp_path / "two", tmp_path / "one", rtol=tolerance)


@pytest.mark.slow
def test_two_processes_have_the_average_precision_of_one(tmp_path, flags, start):
    """It is of the scores that both have found, padding dropped: 500 in batches of 96."""
    flags += ["--config.dtype=float64", "--config.eval_batch_size=96"]
    options = {"config": "digit_groups.py:se,debug", **X64}
    status, output = finish(start(tmp_path / "one", *flags, **options))
    assert status == 0, output
    results = [finish(p) for p in start_two(start, tmp_path / "two", *flags, **options)]
    assert [status for status, _ in results] == [0, 0], results
    lines = [output.splitlines()[-1] for output in (output, *(output for _, output in results))]
    assert lines[0].startswith("test mAP: 0.")
    assert lines[0].endswith("(500 images)")
    assert len(set(lines)) == 1
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-9)


@pytest.mark.slow
def test_two_processes_are_told_to_stop_and_one_goes_on(tmp_path, flags, start):
    """What two saved together, one takes to the end: the losses of a run by one throughout.

    In float64, in which 88 steps do not blow a rounding error up to what can be seen.
    """
    flags += ["--config.epochs=4.0", "--config.dtype=float64"]
    status, output = finish(start(tmp_path / "one", *flags, **X64))
    assert status == 0, output
    processes = start_two(start, tmp_path / "two", *flags, **X64)
    for line in processes[0].stdout:
        if line.startswith("step 4/"):
            break
    for process in processes:
        process.send_signal(signal.SIGTERM)
    results = [finish(process) for process in processes]
    assert [status for status, _ in results] == [128 + signal.SIGTERM] * 2, results
    step = newest_step(tmp_path / "two")
    assert 4 <= step < 88
    status, output = finish(start(tmp_path / "two", *flags, **X64))
    assert status == 0, output
    assert f"steps: {step} to 88" in output
    assert_same_losses(tmp_path / "two", tmp_path / "one", rtol=1e-8)


def test_an_error_of_one_process_ends_both(tmp_path, start):
    """A broken image that only one of two reads: its name, and nobody waits for anybody."""
    for index in range(8):
        for split in ("train", "val"):
            path = tmp_path / "images" / split / "class" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path)
    (tmp_path / "images" / "train" / "class" / "5.png").write_bytes(b"no image")
    processes = start_two(
        start,
        tmp_path / "run",
        "--config.data.source=folder",
        f"--config.data.data_dir={tmp_path}/images",
        "--config.data.eval_split=val",
        config="imagenet_resnet50.py:none,debug",
    )
    results = [finish(process, timeout=120) for process in processes]
    assert all(status != 0 for status, _ in results)
    assert any("class/5.png" in output for _, output in results)


def start_two(start, workdir, *arguments, **options):
    """Two processes of one run on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    distributed = ["--distributed", f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [
        start(workdir, *arguments, *distributed, f"--process_id={index}", **options)
        for index in range(2)
    ]


def assert_same_losses(workdir, other, *, rtol):
    left, right = history(workdir), history(other)
    assert list(left) == list(right)
    np.testing.assert_allclose([*left.values()], [*right.values()], rtol=rtol)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 128 + 15),
        pytest.param(signal.SIGINT, 128 + 15, marks=pytest.mark.slow),
    ],
)
def test_told_to_stop_it_says_how_to_go_on(tmp_path, flags, start, number, status):
    process = start(tmp_path, *flags, "--config.epochs=50.0")
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.send_signal(number)
    assert (found := finish(process))[0] == status, found
    assert "stopped: told to stop after step" in found[1]
    assert "the same command goes on from there" in found[1]
    assert newest_step(tmp_path) >= 3


@pytest.mark.parametrize(
    "xla_flags",
    [
        pytest.param(QUICK, id="compiled_quickly"),
        pytest.param("", id="as_people_do", marks=pytest.mark.slow),
    ],
)
def test_a_complete_run_shows_its_result(tmp_path, flags, start, xla_flags):
    """Its batches made by a worker process, which leaves nothing behind to complain of."""
    flags += ["--config.epochs=0.2", "--config.data.workers=1"]
    status, first = finish(start(tmp_path, *flags, XLA_FLAGS=xla_flags))
    assert status == 0, first
    assert first.splitlines()[-1].startswith("test accuracy: 0.")
    status, again = finish(start(tmp_path, *flags, XLA_FLAGS=xla_flags))
    assert status == 0
    assert "is complete" in again
    assert again.splitlines()[-1] == first.splitlines()[-1]


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ("digits.py:cban", [], "error: unknown digits experiment 'cban': did you mean cbam"),
        (
            "digits.py:se",
            ["--config.optim.learning_rat=1"],
            "error: unknown config field 'optim.learning_rat': did you mean optim.learning_rate",
        ),
        ("digits.py:se", ["--platform=tpu"], "error: a tpu was asked for and JAX finds none"),
        ("digits.py:se", ["--distributed"], "error: --distributed finds no other processes"),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("digits.py:se", ["-config.epoch=1"], "error: unknown config field 'epoch': did"),
                ("digits.py:se,fast", [], "error: config option 'fast' is none: write se or se,"),
                ("digit.py:se", [], "error: [Errno 2] No such file or directory"),
                ("digits.py:se", ["--config.batch_size=many"], "error: flag --config.batch_size="),
                ("digits.py:se", ["--workdir="], "error: --workdir is missing"),
                ("digits.py:se", ["stray"], "error: 'stray' is no flag: write --name=value."),
            )
        ],
    ],
)
def test_bad_input_is_one_line_and_status_1(tmp_path, start, config, arguments, message):
    status, output = finish(start(tmp_path / "run", *arguments, config=config))
    assert status == 1
    assert output.splitlines()[-1].startswith(message), output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_divergence_is_one_line(tmp_path, flags, start):
    status, output = finish(start(tmp_path, *flags, "--config.optim.learning_rate=1e30"))
    assert status == 1
    assert output.splitlines()[-1].startswith("stopped: the loss, its gradient or the parameters")
    assert "Traceback" not in output

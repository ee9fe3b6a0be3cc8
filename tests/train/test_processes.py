"""train.py as people run it: real processes, real signals."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.train.runs import history, newest_state, newest_step

ROOT = Path(__file__).parents[2]


def start(workdir, *arguments, config="digits.py:se,debug", **environment):
    """train.py in a process of its own, with one CPU device; its output goes to one pipe."""
    return subprocess.Popen(
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
        env=os.environ | {"XLA_FLAGS": ""} | environment,
    )


def finish(process, timeout=300):
    """(exit status, output)."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


@pytest.fixture
def flags(data_dir):
    return [f"--config.data.data_dir={data_dir}", "--config.log_every=1"]


def test_sigkill_at_any_moment_costs_nothing(tmp_path, flags):
    """Killed three times, once while a save is in progress, it ends where one never killed ends."""
    flags += ["--config.epochs=2.0", "--config.checkpoint_every=3"]
    status, output = finish(start(tmp_path / "whole", *flags))
    assert status == 0, output

    workdir = tmp_path / "killed"
    during_saves = 0
    for seed in range(3):
        process = start(workdir, *flags)
        during_saves += kill(process, workdir, random.Random(seed), while_saving=seed > 0)
    assert during_saves
    status, output = finish(start(workdir, *flags))
    assert status == 0, output

    assert newest_step(workdir) == newest_step(tmp_path / "whole") == 44
    whole = newest_state(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, newest_state(workdir), whole)
    assert history(workdir) == history(tmp_path / "whole")


def kill(process, workdir, rng, *, while_saving):
    """SIGKILLs a run soon after it made progress; answers whether a save was in progress then."""
    checkpoints = workdir / "checkpoints"
    before = set(checkpoints.glob("*"))
    saving = []
    while process.poll() is None:
        entries = set(checkpoints.glob("*")) - before
        saving = [path for path in entries if "tmp" in path.name]
        if saving if while_saving else entries:
            break
        time.sleep(0.001)
    if not while_saving:
        time.sleep(rng.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return any(path.exists() for path in saving)


def test_two_processes_have_the_losses_of_one(tmp_path, flags):
    """In float64, to the last digits; saved by two, the run goes on in one."""
    flags += ["--config.dtype=float64", "--config.eval_batch_size=100"]
    x64 = {"JAX_ENABLE_X64": "1"}
    status, output = finish(start(tmp_path / "one", *flags, **x64))
    assert status == 0, output

    outputs = run_two(tmp_path / "two", *flags, **x64)
    assert "2 x CPU (cpu) in 2 processes" in outputs[0]
    result_lines = [output.strip().splitlines()[-1] for output in outputs]
    assert result_lines[0] == result_lines[1]
    assert result_lines[0].endswith("of 359)")
    assert_same_losses(tmp_path / "two", tmp_path / "one", rtol=1e-12)


def test_two_processes_agree_in_float32_and_one_goes_on(tmp_path, flags):
    """Both are told to stop; what they saved together, one process takes to the end."""
    status, output = finish(start(tmp_path / "one", *flags))
    assert status == 0, output
    run_two(tmp_path / "two", *flags, stop_after="step 4/11")
    step = newest_step(tmp_path / "two")
    assert 4 <= step < 11
    status, output = finish(start(tmp_path / "two", *flags))
    assert status == 0, output
    assert f"steps: {step} to 11" in output
    two, one = history(tmp_path / "two"), history(tmp_path / "one")
    assert two.keys() == one.keys()
    early = [key for key in one if key[0] <= 8]
    np.testing.assert_allclose([two[k] for k in early], [one[k] for k in early], rtol=1e-5)


def run_two(workdir, *flags, stop_after=None, **environment):
    """Two processes of one run on this machine; answers their outputs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        start(
            workdir,
            *flags,
            "--distributed",
            f"--coordinator=localhost:{port}",
            "--num_processes=2",
            f"--process_id={index}",
            **environment,
        )
        for index in range(2)
    ]
    if stop_after is None:
        results = [finish(process) for process in processes]
        assert [status for status, _ in results] == [0, 0], results
        return [output for _, output in results]
    for line in processes[0].stdout:
        if line.startswith(stop_after):
            break
    for process in processes:
        process.send_signal(signal.SIGTERM)
    results = [finish(process) for process in processes]
    assert [status for status, _ in results] == [128 + signal.SIGTERM] * 2, results
    return [output for _, output in results]


def assert_same_losses(workdir, other, *, rtol):
    left, right = history(workdir), history(other)
    assert list(left) == list(right)
    np.testing.assert_allclose([*left.values()], [*right.values()], rtol=rtol)


def test_told_to_stop_it_says_how_to_go_on(tmp_path, flags):
    process = start(tmp_path, *flags, "--config.epochs=50.0")
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 128 + signal.SIGTERM
    assert "stopped: told to stop after step" in output
    assert "the same command goes on from there" in output
    assert newest_step(tmp_path) >= 3


def test_a_complete_run_shows_its_result(tmp_path, flags):
    flags += ["--config.epochs=0.2"]
    status, first = finish(start(tmp_path, *flags))
    assert status == 0, first
    status, again = finish(start(tmp_path, *flags))
    assert status == 0
    assert "is complete" in again
    assert again.splitlines()[-1] == first.splitlines()[-1]
    assert again.splitlines()[-1].startswith("test accuracy: 0.")


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ("digits.py:cban", [], "error: unknown digits experiment 'cban': did you mean cbam"),
        (
            "digits.py:se",
            ["--config.optim.learning_rat=1"],
            "error: unknown config field 'optim.learning_rat': did you mean optim.learning_rate",
        ),
        ("digits.py:se,fast", [], "error: config option 'fast' is none: write se or se,debug."),
        ("digit.py:se", [], "error: [Errno 2] No such file or directory"),
        ("digits.py:se", ["--config.batch_size=many"], "error: flag --config.batch_size=many"),
        ("digits.py:se", ["--platform=tpu"], "error: a tpu was asked for and JAX finds none"),
        ("digits.py:se", ["stray"], "error: 'stray' is no flag: write --name=value."),
    ],
)
def test_bad_input_is_one_line_and_status_1(tmp_path, config, arguments, message):
    status, output = finish(start(tmp_path / "run", *arguments, config=config))
    assert status == 1
    assert output.splitlines()[-1].startswith(message), output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_divergence_is_one_line(tmp_path, flags):
    status, output = finish(start(tmp_path, *flags, "--config.optim.learning_rate=1e30"))
    assert status == 1
    assert output.splitlines()[-1].startswith("stopped: the loss or its gradient is not a finite")
    assert "Traceback" not in output

"""Comparisons: what is run, what is gone on with, what is refused, and what a report says."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from flaxattn.__main__ import main
from flaxattn.errors import InputError
from flaxattn.inspect import compare, compare_report, equal_cost
from flaxattn.models import create_model
from flaxattn.train import workdir as workdirs
from flaxattn.train.experiment import make_experiment
from flaxattn.train.loop import Diverged, Preempted

ROOT = Path(__file__).parent.parent.parent
# configs/digits.py with one stage.
TINY = """\
from configs import digits

def get_config(arg):
    config = digits.get_config(arg)
    config.model.update(stage_sizes=(1,), width=8)
    if "attention" in config.model:
        config.model.attention.stages = (1,)
    return config
"""
# What is simulated: a gain of two points, none, and another's cost without a gain.
EFFECTS = {"se": 0.02, "eca": 0.0, "none_width_9": 0.0}


@pytest.fixture
def tiny(tmp_path, data_dir):
    """The arguments of `compare` for the tiny config."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return {
        "config": f"{path}:debug",
        "workdir": tmp_path / "compared",
        "fields": {"data.data_dir": data_dir},
    }


@pytest.fixture
def runs(monkeypatch):
    """The runs in their order, which leave simulated results and are not trained."""
    begun = []

    def simulate(config, folder):
        name = Path(folder).parent.name
        begun.append((name, config.seed))
        workdirs.claim(folder, config)
        random = np.random.default_rng([config.seed, *name.encode()])
        luck = np.random.default_rng(config.seed).normal(0.9, 0.02)
        result = {
            "accuracy": luck + EFFECTS.get(name, 0) + random.normal(0, 0.001),
            "count": 359,
        }
        speeds = [{"images_per_second": 100.0 * len(name) + step} for step in (1, 2, 6)]
        rows = [{"step": 0}, *speeds]
        lines = [{"step": n, "split": "train", **row} for n, row in enumerate(rows)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        workdirs.write_json(folder / "result.json", result)
        return result

    monkeypatch.setattr(compare, "run", simulate)
    monkeypatch.setattr(compare, "spent_by", spent_by)
    # The command's log lines would stay for the tests after this one.
    monkeypatch.setattr("flaxattn.train.report.log_to_stderr", lambda **_: None)
    return begun


def spent_by(experiment):
    """Without compiling."""
    return equal_cost.Spent(1000, equal_cost.multiply_adds(experiment), 2000)


def given(tiny):
    """The same as a command line."""
    fields = [word for field in tiny["fields"].items() for word in ("--set", "=".join(field))]
    return ["compare", "--config", tiny["config"], "--workdir", str(tiny["workdir"]), *fields]


def test_a_report_says_what_the_runs_say(tiny, runs, capsys):
    assert main([*given(tiny), "--attention", "none,se,eca", "--seeds", "4"]) == 0
    networks = ("none", "se", "eca", "none_width_9")
    assert runs == [(name, seed) for seed in range(4) for name in networks]

    raw = {
        name: np.array(
            [
                json.loads((tiny["workdir"] / name / f"seed_{seed}/result.json").read_text())[
                    "accuracy"
                ]
                for seed in range(4)
            ]
        )
        for name in networks
    }
    written = json.loads((tiny["workdir"] / "comparison.json").read_text())
    page = (tiny["workdir"] / "report.html").read_text()
    shown = capsys.readouterr().out
    assert (written["base"], written["plain"]) == ("none", "none_width_9")
    assert [network["name"] for network in written["networks"]] == list(networks)
    for network in written["networks"]:
        values = raw[network["name"]]
        assert network["results"] == values.tolist()
        assert network["mean"] == pytest.approx(values.mean())
        assert network["images_per_second"] == 100 * len(network["name"]) + 2
        figures = [f"{100 * values.mean():.2f}", *(f"{100 * value:.2f}" for value in values)]
        for reference, field in (("none", "above_base"), ("none_width_9", "above_plain")):
            if (difference := network[field]) is None:
                continue
            paths = values - raw[reference]
            error = paths.std(ddof=1) / 2
            assert difference["values"] == pytest.approx(paths.tolist())
            assert difference["mean"] == pytest.approx(paths.mean())
            reach = 3.182446 * error  # Student's, of three degrees of freedom
            low, high = paths.mean() - reach, paths.mean() + reach
            assert difference["interval"] == pytest.approx([low, high], abs=1e-7)
            figures.append(f"{100 * paths.mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]")
            assert figures[-1] in shown
        for figure in figures:
            assert figure in page
    verdicts = {n["name"]: (n["above_base"] or {}).get("verdict") for n in written["networks"]}
    assert verdicts == {
        "none": None,
        "se": "higher",
        "eca": "no difference shown",
        "none_width_9": "no difference shown",
    }
    assert "se is higher than none (+" in shown
    assert "eca against none: no difference shown (" in shown
    assert "se is higher than none_width_9 (+" in shown
    assert re.search(r"4 seeds with this spread show a true difference of \d\.\d\d points", shown)
    picture = (tiny["workdir"] / "comparison.png").read_bytes()
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        assert image.width > 1000
    assert "<script" not in page
    assert 'src="data:image/png;base64,' in page


@pytest.mark.usefixtures("runs")
def test_two_seeds_are_no_gain(tiny, capsys):
    arguments = ["--attention", "none,se", "--seeds", "2", "--no-equal-cost"]
    assert main([*given(tiny), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "points in 2 seeds, which are too few to say anything: take 3" in shown
    assert "higher" not in shown
    assert "[+" not in shown


def test_goes_on_where_it_was_stopped(tiny, runs, monkeypatch, capsys):
    arguments = [*given(tiny), "--attention", "none,eca", "--seeds", "2", "--no-equal-cost"]
    simulate = compare.run

    def stopped(config, folder):
        if len(runs) == 2:
            raise Preempted("told to stop after step 3 of 4")
        return simulate(config, folder)

    monkeypatch.setattr(compare, "run", stopped)
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 143
    assert "told to stop after step 3" in capsys.readouterr().err
    assert not (tiny["workdir"] / "report.html").exists()

    monkeypatch.setattr(compare, "run", simulate)
    assert main(arguments) == 0
    every = [("none", 0), ("eca", 0), ("none", 1), ("eca", 1)]
    assert runs == every
    first = (tiny["workdir"] / "report.html").read_text()
    assert main(arguments) == 0
    assert runs == every, "a complete comparison is not trained again"
    assert (tiny["workdir"] / "report.html").read_text() == first

    arguments[arguments.index("none,eca")] = "none,eca,se"
    assert main(arguments) == 0
    assert runs[4:] == [("se", 0), ("se", 1)]


@pytest.mark.usefixtures("runs")
def test_a_run_that_diverges_stops_with_its_name(tiny, monkeypatch):
    def diverge(*_):
        raise Diverged("the loss is not finite at step 3")

    monkeypatch.setattr(compare, "run", diverge)
    with pytest.raises(SystemExit, match="stopped: none, seed 0: the loss is not finite"):
        main([*given(tiny), "--attention", "none,se", "--no-equal-cost"])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"attention": ("none",)}, "nothing to compare: name the base and one mechanism"),
        ({"attention": ("none", "se", "se")}, "attention has se twice"),
        ({"attention": ("none", "../se")}, "'../se' is not a mechanism's name"),
        ({"attention": ("se", "eca")}, "begin with none, or say which is the base by --base"),
        ({"base": "sca"}, "unknown base 'sca'"),
        ({"attention": ("none", "sse")}, "unknown digits experiment 'sse': did you mean se"),
        ({"seeds": 0}, "seeds=0 is below 1"),
        ({"fields": {"seed": 3}}, "--set seed: the seeds are those from 0 on"),
        ({"fields": {"epoch": 3}}, "unknown config field 'epoch': did you mean epochs"),
        ({"fields": {"epochs": "x"}}, "--set epochs='x'"),
        ({"fields": {"epochs": -1.0}}, "epochs=-1.0: use a number above 0"),
        ({"config": "none.py"}, "there is no config file 'none.py'"),
        ({"config": "README.md"}, "the config file 'README.md' is not Python"),
        ({"config": "flaxattn/errors.py"}, "the config file flaxattn/errors.py has no get_config"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(
    tiny, runs, monkeypatch, changed, sentence
):
    monkeypatch.chdir(ROOT)
    arguments = {"attention": ("none", "se"), "equal_cost": False, **tiny, **changed}
    if "fields" in changed:
        arguments["fields"] = tiny["fields"] | changed["fields"]
    with pytest.raises(InputError, match=re.escape(sentence)) as refused:
        compare.compare(**arguments)
    assert len(str(refused.value)) <= 600
    assert not runs
    assert not tiny["workdir"].exists()


@pytest.mark.usefixtures("runs")
def test_another_comparisons_directory_is_refused(tiny):
    arguments = {"attention": ("none", "se"), "seeds": 1, "equal_cost": False, **tiny}
    compare.compare(**arguments)
    arguments["fields"] = {**tiny["fields"], "epochs": 2.0}
    with pytest.raises(InputError, match=r"another experiment, which differs in epochs: 0\.5"):
        compare.compare(**arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--config and --attention, or --preset"),
        (["--config", "configs/digits.py"], "--config and --attention, or --preset"),
        (["--preset", "article"], "unknown preset 'article': did you mean article0"),
        (["--preset", "article0", "--attention", "none,se"], "--preset article0 has its own"),
        (["--preset", "article0", "--set", "epochs"], "write FIELD=VALUE"),
    ],
)
def test_what_the_command_refuses(arguments, sentence, capsys):
    assert main(["compare", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
def test_the_base_can_be_another(tiny):
    found = compare.compare(attention=("se", "eca"), base="se", seeds=1, equal_cost=False, **tiny)
    assert [network.above_base is None for network in found.networks] == [True, False]


def test_the_argument_of_a_config_takes_the_mechanism_before_debug(tmp_path):
    path = tmp_path / "echo.py"
    path.write_text(
        "from flaxattn.train.config import base_config\n"
        "def get_config(arg):\n"
        "    config = base_config()\n"
        "    config.data.name = arg\n"
        "    return config\n"
    )
    for before, argument in (
        ("", "se"),
        (":debug", "se,debug"),
        (":scenes", "scenes,se"),
        (":scenes,debug", "scenes,se,debug"),
    ):
        assert compare.load_config(f"{path}{before}", "se", {}).data.name == argument


def test_runs_of_a_seed_start_alike_and_see_the_same(tiny):
    """And those of another seed do not."""
    starts, batches = {}, {}
    for name, seed in (("none", 0), ("se", 0), ("none", 1)):
        config = compare.load_config(tiny["config"], name, tiny["fields"])
        config.seed = seed
        experiment = make_experiment(config, devices=jax.devices()[:1])
        starts[name, seed] = flatten_dict(experiment.start()["params"])
        stream = experiment.train_batches(start_step=0)
        batches[name, seed] = next(stream)
        stream.close()
    plain, attended = starts["none", 0], starts["se", 0]
    assert plain.keys() < attended.keys()
    for path, value in plain.items():
        np.testing.assert_array_equal(attended[path], value)
    for name, array in batches["none", 0].items():
        np.testing.assert_array_equal(batches["se", 0][name], array)
    assert not np.array_equal(batches["none", 1]["image"], batches["none", 0]["image"])
    kernel = ("conv1", "kernel")
    assert not np.array_equal(starts["none", 1][kernel], plain[kernel])


@pytest.mark.usefixtures("runs")
def test_a_mechanism_without_multiply_adds_has_the_base_as_its_equal(tiny):
    tiny["fields"] = {**tiny["fields"], "model.width": 8}
    path = Path(tiny["config"].partition(":")[0])
    path.write_text(
        TINY.replace(
            "return",
            'config.model = {"name": "resnet10", "stage_sizes": (1,), "width": 8}\n    return',
        )
    )
    found = compare.compare(attention=("none", "se"), seeds=1, **tiny)
    assert found.plain is None
    assert [network.name for network in found.networks] == ["none", "se"]
    assert "none_width" not in compare_report.text(found)


@pytest.mark.parametrize("preset", compare.PRESETS.values(), ids=list(compare.PRESETS))
def test_every_network_of_a_preset_is_its_configs(preset, monkeypatch):
    monkeypatch.chdir(ROOT)
    base, *others = (compare.load_config(preset.config, name, {}) for name in preset.attention)
    assert "attention" not in base.model
    placed = [config.model.attention.to_dict() for config in others]
    assert all(placed.count(attention) == 1 for attention in placed)
    if preset.config == "configs/cluttered_digits.py":
        for config in (base, *others):
            create_model(num_classes=10, **config.model)


def test_a_plot_tells_many_networks_apart():
    """Eight, of which some have neither interval nor speed."""
    random = np.random.default_rng(0)
    networks = tuple(
        compare.Network(
            name=f"network {n}",
            spent=equal_cost.Spent(1000 + n, 10**6 + n, 10**5 + n),
            results=(value,),
            mean=value,
            interval=None if n % 2 else (value - 0.01, value + 0.02),
            images_per_second=None if n % 3 else 100.0,
            above_base=None,
            above_plain=None,
        )
        for n, value in enumerate(random.uniform(0.8, 0.9, 8))
    )
    comparison = compare.Comparison("x.py", {}, "accuracy", 1, "network 0", None, "cpu", networks)
    with Image.open(io.BytesIO(compare_report.plot(comparison))) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(10**6)}
    for colour in compare_report.COLOURS:
        assert tuple(bytes.fromhex(colour[1:])) in colours


@pytest.mark.usefixtures("runs")
def test_names_are_text_in_the_page(tiny):
    found = compare.compare(attention=("none", "se"), seeds=1, equal_cost=False, **tiny)
    page = compare_report.page(dataclasses.replace(found, config="<b>&"), b"")
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page


@pytest.mark.slow
def test_killed_it_goes_on_and_says_nothing_of_two_seeds(data_dir, tmp_path):
    """With SIGKILL in its second run."""
    command = [
        *(sys.executable, "-m", "flaxattn", "compare", "--config", "configs/digits.py:debug"),
        *("--attention", "none,se", "--seeds", "2", "--no-equal-cost"),
        *("--set", f"data.data_dir={data_dir}", "--workdir", str(tmp_path)),
    ]
    settings, quiet = {**os.environ, "XLA_FLAGS": ""}, subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=quiet, stderr=quiet)
    second = tmp_path / "se" / "seed_0" / "config.json"
    deadline = time.monotonic() + 300
    while not second.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = tmp_path / "none" / "seed_0" / "result.json"
    written = first.stat().st_mtime_ns
    assert not (tmp_path / "report.html").exists()

    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == written
    assert "in 2 seeds, which are too few to say anything" in done.stdout
    assert "4 of 4: se, seed 1: accuracy 0." in done.stderr
    assert "1 of 4" not in done.stderr
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert {network["name"] for network in written["networks"]} == {"none", "se"}
    assert all(network["images_per_second"] > 0 for network in written["networks"])

"""Whether attention helps in an experiment: the same seeds with each mechanism and without."""

import dataclasses
import importlib.util
import json
import logging
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from flaxattn.errors import InputError, require_least, shown, unknown
from flaxattn.inspect import paired
from flaxattn.inspect.equal_cost import Spent, plain_of_equal_cost, spent_by
from flaxattn.train import workdir as workdirs
from flaxattn.train.experiment import Experiment, make_experiment
from flaxattn.train.loop import Diverged, run
from flaxattn.train.report import read_history

log = logging.getLogger("flaxattn.compare")


class Preset(NamedTuple):
    """A comparison under a name: its config, and the mechanisms, the base first."""

    config: str
    attention: tuple[str, ...]


PRESETS = {
    "article-parts": Preset(
        "configs/cluttered_digits.py", ("none", "sca_channel", "sca_spatial", "sca")
    ),
    "article-stages": Preset(
        "configs/cluttered_digits.py", ("none", "sca_stage1", "sca_stage2", "sca_stage3", "sca")
    ),
    "article0": Preset(
        "configs/voc_detect.py:scenes",
        (
            *("none", "se", "cbam", "bam", "eca"),
            *("shuffle", "polarized", "sge", "coordinate"),
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a comparison, its results at each seed, and what these say.

    Fields:
        results: the headline metric of each seed's run.
        mean: of the results.
        interval: of their mean (`flaxattn.inspect.paired.interval`).
        images_per_second: training, the median of the runs' medians between log lines; None for
            runs of fewer than two log lines.
        above_base: against the base; None for the base itself.
        above_plain: against the plain network of equal cost; None for plain networks.
    """

    name: str
    spent: Spent
    results: tuple[float, ...]
    mean: float
    interval: paired.Interval | None
    images_per_second: float | None
    above_base: paired.Difference | None
    above_plain: paired.Difference | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What came out.

    Fields:
        config: as it was given.
        fields: what was set in it.
        metric: the task's headline.
        seeds: from 0 to below.
        base: the name of the network without attention.
        plain: that of the plain network of equal cost, if there is one.
        device: on which the runs were timed.
        networks: in the order in which they were given, the plain one at the end.
    """

    config: str
    fields: Mapping[str, Any]
    metric: str
    seeds: int
    base: str
    plain: str | None
    device: str
    networks: tuple[Network, ...]


def compare(
    config: str,
    attention: Sequence[str],
    *,
    workdir: str | Path,
    seeds: int = 5,
    base: str | None = None,
    equal_cost: bool = True,
    fields: Mapping[str, Any] | None = None,
) -> Comparison:
    """Trains a config with each mechanism from each seed, and compares what came out.

    Runs of one seed see the same data in the same order, and start from the same values wherever
    their networks have a parameter in common. They lie in WORKDIR/NAME/seed_N, and one that is
    complete is not trained again: what was stopped goes on, and more mechanisms and seeds can be
    added. All networks of a seed are trained before the next seed's, so that what a machine does
    beside them slows all of them alike.

    Args:
        config: a config file, and behind a colon what stands in its argument before the mechanism,
            or "debug".
        attention: what the config calls the mechanisms.
        base: which of them is the network without attention; by default the first, which must then
            be "none".
        equal_cost: add the base network, widened until it has at least as many multiply-adds as the
            costliest of the others. If none has more than the base, nothing is added.
        fields: of the config by their dotted names, for all runs.

    Raises InputError before the first run for all that cannot be compared; and what `run` raises.
    """
    require_least("seeds", seeds, 1)
    fields = dict(fields or {})
    base = _require_base(attention, base)
    configs = {name: load_config(config, name, fields) for name in attention}
    log.info("counting what %d networks cost", len(configs))
    experiments = {name: make_experiment(made) for name, made in configs.items()}
    plain = None
    if equal_cost and (found := plain_of_equal_cost(experiments, base)):
        plain, experiments[plain] = found
    planned = dict(_planned(experiments, Path(workdir), seeds))
    for folder, seeded in planned.items():
        workdirs.require_same(folder, seeded)
    spent = {name: spent_by(experiment) for name, experiment in experiments.items()}
    metric = experiments[base].task.headline
    _run_all(planned, metric)
    return compared(
        workdir,
        spent,
        config=config,
        fields=fields,
        metric=metric,
        seeds=seeds,
        base=base,
        plain=plain,
    )


def compared(
    workdir: str | Path,
    spent: Mapping[str, Spent],
    *,
    config: str,
    fields: Mapping[str, Any],
    metric: str,
    seeds: int,
    base: str,
    plain: str | None,
) -> Comparison:
    """What complete runs in `workdir` say, of the networks named in `spent`; see `Comparison`."""
    folders = {name: [_folder(workdir, name, seed) for seed in range(seeds)] for name in spent}
    results = {
        name: tuple(_result(folder)[metric] for folder in runs) for name, runs in folders.items()
    }
    others = {name: values for name, values in results.items() if name != base}
    above_base = paired.differences(results[base], others)
    above_plain = {}
    if plain is not None:
        attended = {name: values for name, values in others.items() if name != plain}
        above_plain = paired.differences(results[plain], attended)
    networks = tuple(
        Network(
            name=name,
            spent=spent[name],
            results=values,
            mean=statistics.fmean(values),
            interval=paired.interval(values),
            images_per_second=_median(map(images_per_second, folders[name])),
            above_base=above_base.get(name),
            above_plain=above_plain.get(name),
        )
        for name, values in results.items()
    )
    return Comparison(
        config=config,
        fields=fields,
        metric=metric,
        seeds=seeds,
        base=base,
        plain=plain,
        device=jax.devices()[0].device_kind,
        networks=networks,
    )


def load_config(config: str, name: str, fields: Mapping[str, Any]) -> ConfigDict:
    """The config of a file with the mechanism `name`, as config flags read it, and these fields.

    "configs/digits.py" becomes configs/digits.py:NAME, "configs/voc_detect.py:scenes,debug"
    configs/voc_detect.py:scenes,NAME,debug.
    """
    path, _, argument = config.partition(":")
    words = [word for word in argument.split(",") if word]
    place = len(words) - (words[-1:] == ["debug"])
    words.insert(place, name)
    made = _get_config(path)(",".join(words))
    known = workdirs.flat_fields(made.to_dict())
    for field, value in fields.items():
        if field == "seed":
            raise InputError("--set seed: the seeds are those from 0 on, as many as --seeds says.")
        if field not in known:
            raise unknown("config field", field, known)
        try:
            made.update_from_flattened_dict({field: value})
        except (TypeError, ValueError) as error:
            raise InputError(f"--set {field}={shown(value)}: {error}.") from error
    made.pictures = 0
    return made


def images_per_second(folder: Path) -> float | None:
    """Of a run, the median over the intervals between its log lines; None if it has no interval."""
    return _median(row.get("images_per_second") for row in read_history(folder / "metrics.jsonl"))


def _require_base(attention: Sequence[str], base: str | None) -> str:
    if len(attention) < 2:
        raise InputError(
            f"attention={shown(','.join(attention))} is nothing to compare: name the base and one "
            f"mechanism or more, as in none,se."
        )
    if twice := sorted({name for name in attention if attention.count(name) > 1}):
        raise InputError(f"attention has {', '.join(twice)} twice: name each once.")
    for name in attention:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"{shown(name)} is not a mechanism's name: write them as in none,se.")
    if base is None:
        if attention[0] != "none":
            raise InputError(
                f"the first of attention is {attention[0]!r}, not the network without attention: "
                f"begin with none, or say which is the base by --base."
            )
        return "none"
    if base not in attention:
        raise unknown("base", base, attention)
    return base


def _get_config(path: str) -> Callable[[str], ConfigDict]:
    if not Path(path).is_file():
        raise InputError(f"there is no config file {shown(path)}: see those in configs/.")
    spec = importlib.util.spec_from_file_location("compared_config", path)
    if spec is None or spec.loader is None:
        raise InputError(f"the config file {shown(path)} is not Python: see those in configs/.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"the config file {path} has no get_config(): see those in configs/.")
    return module.get_config


def _folder(workdir: str | Path, name: str, seed: int) -> Path:
    return Path(workdir, name, f"seed_{seed}")


def _planned(
    experiments: Mapping[str, Experiment], workdir: Path, seeds: int
) -> Iterator[tuple[Path, ConfigDict]]:
    """The runs in their order, by their folders."""
    for seed in range(seeds):
        for name, experiment in experiments.items():
            seeded = ConfigDict(experiment.config.to_dict())
            seeded.seed = seed
            yield _folder(workdir, name, seed), seeded


def _run_all(planned: Mapping[Path, ConfigDict], metric: str) -> None:
    complete = {folder for folder in planned if (folder / "result.json").exists()}
    with (
        logging_redirect_tqdm([logging.getLogger("flaxattn")]),
        tqdm(total=len(planned), initial=len(complete), unit="run", disable=None) as bar,
    ):
        for number, (folder, config) in enumerate(planned.items(), start=1):
            if folder in complete:
                continue
            what = f"{folder.parent.name}, seed {config.seed}"
            bar.set_description(what)
            try:
                result = run(config, folder)
            except Diverged as error:
                raise Diverged(f"{what}: {error}") from error
            log.info("%d of %d: %s: %s %.4f", number, len(planned), what, metric, result[metric])
            bar.update()
            jax.clear_caches()  # the next run has programs of its own


def _result(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None

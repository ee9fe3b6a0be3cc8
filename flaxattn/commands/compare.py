"""python -m flaxattn compare: whether attention helps in an experiment."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from flaxattn.commands.arguments import refuse, value_of
from flaxattn.errors import InputError, unknown
from flaxattn.extras import require_extra


def add(commands: Any) -> None:
    comparing = commands.add_parser(
        "compare", help="train with each mechanism and without it, from the same seeds"
    )
    comparing.add_argument("--config", metavar="FILE[:ARGUMENT]", help="as configs/digits.py")
    comparing.add_argument(
        "--attention", metavar="NAME,NAME", help="what the config calls them, as none,se,eca"
    )
    comparing.add_argument("--preset", help="a config and mechanisms by one name")
    comparing.add_argument("--seeds", type=int, default=5, help="how many, from 0 on (5)")
    comparing.add_argument("--base", metavar="NAME", help="what to compare with (none)")
    comparing.add_argument(
        "--no-equal-cost", action="store_true", help="without a plain network of equal cost"
    )
    comparing.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="of the config, as epochs=3",
    )
    comparing.add_argument(
        "--workdir", type=Path, default=Path("runs/compare"), help="of all runs (runs/compare)"
    )
    comparing.add_argument("--platform", help="tpu, gpu or cpu: an error if it is not there")
    comparing.set_defaults(run=run)


def run(given: argparse.Namespace) -> None:
    # Imported here: training needs packages that the other commands do without.
    require_extra("train", doing="compare")
    from flaxattn.inspect import compare, compare_report
    from flaxattn.train.compilation import keep_compiled
    from flaxattn.train.loop import Diverged, Preempted
    from flaxattn.train.report import log_to_stderr
    from flaxattn.train.sharding import require_platform

    asked = {"config": given.config, "attention": given.attention}
    if given.preset is not None:
        refuse(asked, f"--preset {given.preset} has its own")
        if given.preset not in compare.PRESETS:
            raise unknown("preset", given.preset, compare.PRESETS)
        config, attention = compare.PRESETS[given.preset]
    elif None in asked.values():
        raise InputError("compare takes --config and --attention, or --preset instead of them.")
    else:
        config, attention = given.config, tuple(given.attention.split(","))
    log_to_stderr(level=logging.WARNING)
    compare.log.setLevel(logging.INFO)
    keep_compiled()
    require_platform(given.platform)
    try:
        found = compare.compare(
            config,
            attention,
            workdir=given.workdir,
            seeds=given.seeds,
            base=given.base,
            equal_cost=not given.no_equal_cost,
            fields=dict(_field(text) for text in given.set),
        )
    except Diverged as error:
        raise SystemExit(f"stopped: {error}") from error
    except Preempted as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise SystemExit(128 + 15) from error
    compare_report.write(found, given.workdir)
    print(compare_report.text(found))
    print(f"\n{given.workdir / 'report.html'}")


def _field(text: str) -> tuple[str, Any]:
    field, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: write FIELD=VALUE, as in --set epochs=3.")
    return field, value_of(value)

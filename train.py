"""Trains an experiment: python train.py --config configs/digits.py:se --workdir runs/se

Any field of the config is a flag: --config.optim.learning_rate=0.05. The same command goes on with
a run that was stopped, and shows the result of one that is complete.
"""

import os
import re
import sys
from typing import NoReturn

from flaxattn.errors import InputError, unknown
from flaxattn.extras import require_extra

try:
    require_extra("train", doing="train.py")
except InputError as error:
    sys.exit(f"error: {error}")

import jax
from absl import app, flags
from ml_collections import config_flags

from flaxattn.train.compilation import FOLDER, keep_compiled
from flaxattn.train.experiment import TASKS
from flaxattn.train.loop import Diverged, Preempted, run
from flaxattn.train.report import log_to_stderr
from flaxattn.train.sharding import require_platform
from flaxattn.train.start import start_from
from flaxattn.train.workdir import flat_fields

CONFIG = config_flags.DEFINE_config_file("config", help_string="configs/NAME.py:ARGUMENT")
WORKDIR = flags.DEFINE_string("workdir", "", "Where the run lives; made if it is not there.")
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "A file, directory or Hugging Face repository to start from, with its architecture and "
    "normalisation and a new head. --config.init says the same in parts.",
)
PLATFORM = flags.DEFINE_string("platform", None, "tpu, gpu or cpu: an error if it is not there.")
CACHE = flags.DEFINE_string(
    "compilation_cache",
    FOLDER,
    "Where compiled programs outlive a run; '' is off.",
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of one run.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0; a TPU knows it.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many; a TPU knows it.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this is, from 0; a TPU knows it.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"{argv[1]!r} is no flag: write --name=value.")
    for flag in (CONFIG, WORKDIR):
        if not flag.value:
            raise InputError(f"--{flag.name} is missing: see `python train.py --help`.")
    keep_compiled(CACHE.value)
    if DISTRIBUTED.value:
        join()
    require_platform(PLATFORM.value)
    if WEIGHTS.value:
        start_from(CONFIG.value, WEIGHTS.value)
    result = run(CONFIG.value, WORKDIR.value)
    print(f"test {TASKS[CONFIG.value.task].sentence(result)}", flush=True)


def join() -> None:
    """Joins the other processes of the run."""
    try:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed finds no other processes: outside a TPU pod or a cluster that JAX "
            f"knows, give --coordinator, --num_processes and --process_id. JAX says: {error}"
        ) from error


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, but with one sentence where it would show a traceback."""
    try:
        # The config alone first: absl answers an unknown field of it with a traceback.
        alone = flags.FlagValues()
        config = config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=[])
        overrides = [arg for arg in argv if re.match("--?config[.]", arg)]
        alone([arg for arg in argv if arg not in overrides], known_only=True)
        if config.value is not None:
            fields = flat_fields(config.value.to_dict())
            for arg in overrides:
                field = arg.partition("=")[0].partition(".")[2]
                if field not in fields:
                    raise unknown("config field", field, fields)
        return flags.FLAGS(argv)
    except AttributeError as error:
        if error.name != "get_config":
            raise
        raise InputError("the --config file has no get_config(): see those in configs/.") from error
    except (flags.Error, OSError, SyntaxError) as error:
        raise _input_error_below(error) from error


def _input_error_below(error: BaseException) -> InputError:
    """The config file's own InputError, which absl wraps, else the last line that absl wrote."""
    cause: BaseException | None = error
    last = str(error).strip().splitlines()[-1].strip(" .")
    found = InputError(f"{last}: see `python train.py --help`.")
    while cause:
        if type(cause) is InputError and "Traceback" not in str(cause):
            found = cause
        cause = cause.__context__
    return found


def leave(status: int, words: str) -> NoReturn:
    """Ends this process, and with it the others of its run: they cannot go on without it."""
    print(words, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        # Past JAX's own farewell, which waits minutes for processes that wait for this one.
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    log_to_stderr()
    try:
        app.run(main, flags_parser=parse_flags)
    except InputError as error:
        leave(1, f"error: {error}")
    except Diverged as error:
        leave(1, f"stopped: {error}")
    except Preempted as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(128 + 15)
    except KeyboardInterrupt:
        leave(128 + 2, "stopped: interrupted; the same command goes on from the last checkpoint.")

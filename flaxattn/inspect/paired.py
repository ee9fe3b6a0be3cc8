"""Results of several networks over the same seeds: their intervals, and tests of what differs."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from flaxattn.errors import InputError

CONFIDENCE = 0.95  # of each interval by itself
LEVEL = 0.05  # the most that the probability of any wrong claim among all may be
POWER = 0.8
FEWEST_SEEDS = 3

Interval = tuple[float, float]

HIGHER, LOWER = "higher", "lower"
NOT_SHOWN = "no difference shown"
TOO_FEW = "too few seeds to say"


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far a network's results lie above those of a reference at the same seeds.

    Fields:
        values: the difference at each seed.
        mean: of the values.
        interval: of the mean with `CONFIDENCE`, each by itself. None where the seeds are fewer than
            `FEWEST_SEEDS`, or show no spread.
        p: of the two-sided paired t-test, 1 where the seeds show no spread; None where they are too
            few.
        corrected_p: p times what Holm's correction asks for, so that claims at `LEVEL` hold for all
            networks together.
        detectable: the true difference that so many seeds, with the spread that these have, show
            with probability `POWER` at `LEVEL` divided by the number of networks. None as for
            `interval`.
        verdict: "higher", "lower", "no difference shown", or "too few seeds to say".
    """

    values: tuple[float, ...]
    mean: float
    interval: Interval | None
    p: float | None
    corrected_p: float | None
    detectable: float | None
    verdict: str


def differences(
    reference: Sequence[float], others: Mapping[str, Sequence[float]]
) -> dict[str, Difference]:
    """Each of the others against the reference: the n-th values of all have one seed in common.

    The test is Student's on the differences. It takes them for independent draws of one normal
    distribution. A test of their signs alone would assume less, but of five seeds its smallest p is
    2 / 2^5, above `LEVEL`: it could never show anything. p-values are corrected by Holm, "A Simple
    Sequentially Rejective Multiple Test Procedure", Scand. J. Statist. 6, 1979, which holds however
    the networks' results hang together; here they share a reference.

    Raises InputError for results of other numbers of seeds.
    """
    for name, values in others.items():
        if len(values) != len(reference):
            raise InputError(
                f"{name} has results of {len(values)} seeds and the reference of "
                f"{len(reference)}: pairs need the same seeds."
            )
    found = {name: _paired(np.subtract(values, reference)) for name, values in others.items()}
    corrected = holm([p for _, p in found.values()])
    return {
        name: Difference(
            values=tuple(values.tolist()),
            mean=float(values.mean()),
            interval=interval(values),
            p=p,
            corrected_p=corrected_p,
            detectable=detectable(values, tests=len(others)),
            verdict=_verdict(float(values.mean()), corrected_p),
        )
        for (name, (values, p)), corrected_p in zip(found.items(), corrected, strict=True)
    }


def interval(values: Sequence[float] | np.ndarray) -> Interval | None:
    """Student's interval of the mean, with `CONFIDENCE`; None as for `Difference.interval`."""
    error = _standard_error(values)
    if not error:
        return None
    reach = error * scipy.special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
    mean = float(np.mean(values))
    return mean - float(reach), mean + float(reach)


def detectable(values: Sequence[float] | np.ndarray, *, tests: int) -> float | None:
    """The true mean that a t-test of values with this spread finds with probability `POWER`.

    tests: how many share `LEVEL`.
    """
    error = _standard_error(values)
    if not error:
        return None
    freedom = len(values) - 1
    critical = scipy.special.stdtrit(freedom, 1 - LEVEL / tests / 2)
    # The noncentrality at which t stays below its critical value with probability 1 - POWER.
    return error * float(scipy.special.nctdtrinc(freedom, 1 - POWER, critical))


def _paired(values: np.ndarray) -> tuple[np.ndarray, float | None]:
    """The differences and the p-value of their t-test."""
    error = _standard_error(values)
    if error is None:
        return values, None
    if not error:
        return values, 1.0
    t = abs(values.mean()) / error
    return values, float(2 * scipy.special.stdtr(len(values) - 1, -t))


def _standard_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Of the mean: None for too few seeds, 0 where all values are the same but for rounding.

    Accuracies count images: seeds that differ by the same number of them show no spread, but their
    differences in floating point do, next to nothing, and t would be huge.
    """
    if len(values) < FEWEST_SEEDS:
        return None
    if np.ptp(values) < 1e-9:
        return 0.0
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's corrected p-values; without seeds enough for one there are none for all."""
    known = np.array([value for value in p if value is not None])
    if len(known) < len(p):
        return [None] * len(p)
    order = np.argsort(known)
    scaled = known[order] * np.arange(len(known), 0, -1)
    corrected = np.empty_like(known)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected.tolist()


def _verdict(mean: float, corrected_p: float | None) -> str:
    if corrected_p is None:
        return TOO_FEW
    if corrected_p > LEVEL:
        return NOT_SHOWN
    return HIGHER if mean > 0 else LOWER

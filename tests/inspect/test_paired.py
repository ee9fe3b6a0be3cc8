"""Intervals and tests over seeds: by hand, against SciPy's, and on simulated results."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from flaxattn.errors import InputError
from flaxattn.inspect import paired

SIMULATIONS = 2000


def test_by_hand():
    """With two degrees of freedom Student's distribution is 1/2 + t / (2 sqrt(2 + t^2))."""
    found = paired.differences([0.5, 0.6, 0.7], {"a": [0.51, 0.62, 0.73]})["a"]
    t = 2 * math.sqrt(3)
    assert found.mean == pytest.approx(0.02)
    assert found.p == found.corrected_p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    reach = 4.302653 * 0.01 / math.sqrt(3)
    assert found.interval == pytest.approx((0.02 - reach, 0.02 + reach), rel=1e-6)
    assert found.verdict == "no difference shown"


RESULTS = st.lists(
    st.tuples(*[st.integers(0, 359)] * 3), min_size=paired.FEWEST_SEEDS, max_size=12
).filter(lambda rows: all(len({row[i] - row[0] for row in rows}) > 1 for i in (1, 2)))


@given(RESULTS)
def test_as_scipy_has_it(rows):
    """Of accuracies, which are counts of 359 images."""
    reference, one, other = np.array(rows).T / 359
    found = paired.differences(reference, {"one": one, "other": other})
    for name, values in (("one", one), ("other", other)):
        expected = scipy.stats.ttest_rel(values, reference)
        assert found[name].p == pytest.approx(expected.pvalue, abs=1e-12)
        assert found[name].interval == pytest.approx(expected.confidence_interval(), abs=1e-9)
    p = sorted(d.p for d in found.values())
    corrected = sorted(d.corrected_p for d in found.values())
    assert corrected == pytest.approx([min(2 * p[0], 1), min(max(2 * p[0], p[1]), 1)])


@given(RESULTS)
def test_changed_sides_change_the_sign_alone(rows):
    reference, other, _ = np.array(rows).T / 359
    there = paired.differences(reference, {"": other})[""]
    back = paired.differences(other, {"": reference})[""]
    assert (back.p, back.detectable) == pytest.approx((there.p, there.detectable))
    assert back.interval == pytest.approx([-end for end in reversed(there.interval)])
    opposite = {"higher": "lower", "lower": "higher"}
    assert back.verdict == opposite.get(there.verdict, there.verdict)


def test_holm_by_hand():
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([0.9, 0.8]) == [1, 1]
    assert paired.holm([0.01, None]) == [None, None]


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_say_nothing(seeds):
    found = paired.differences([0.5, 0.6][:seeds], {"a": [0.7, 0.9][:seeds]})["a"]
    assert found.mean == pytest.approx(0.2 if seeds == 1 else 0.25)
    assert (found.interval, found.p, found.corrected_p, found.detectable) == (None,) * 4
    assert found.verdict == "too few seeds to say"
    assert paired.interval([0.7, 0.9][:seeds]) is None


def test_without_spread_nothing_is_claimed():
    """One image more at each seed; in floating point the differences are not quite the same."""
    reference = [hits / 359 for hits in (301, 333, 340, 352, 357)]
    other = [hits / 359 for hits in (302, 334, 341, 353, 358)]
    assert len(set(np.subtract(other, reference))) > 1
    found = paired.differences(reference, {"a": other})["a"]
    assert (found.interval, found.p, found.detectable) == (None, 1, None)
    assert found.verdict == "no difference shown"


def test_pairs_need_the_same_seeds():
    with pytest.raises(InputError, match="a has results of 2 seeds and the reference of 3"):
        paired.differences([0.5, 0.6, 0.7], {"a": [0.5, 0.6]})


def simulated(effects, *, count=SIMULATIONS, seeds=5):
    """Comparisons whose networks share each seed's luck, of 0.02, and have their own, of 0.005."""
    random = np.random.default_rng(0)
    for _ in range(count):
        luck = 0.9 + random.normal(0, 0.02, (seeds, 1))
        results = luck + random.normal(0, 0.005, (seeds, 1 + len(effects)))
        results[:, 1:] += effects
        reference, *others = results.T
        yield paired.differences(reference, dict(enumerate(others)))


def test_intervals_cover_a_known_effect():
    covers = [
        low <= 0.01 <= high for found in simulated([0.01]) for low, high in [found[0].interval]
    ]
    assert 0.935 <= np.mean(covers) <= 0.965


def test_an_effect_of_nothing_is_seldom_called_one():
    """Of four networks in one comparison, any; uncorrected tests would fail here."""
    found = list(simulated([0.0] * 4))
    claimed = [any(d.verdict in ("higher", "lower") for d in all_.values()) for all_ in found]
    assert 0.01 < np.mean(claimed) <= 0.06
    assert np.mean([any(d.p <= paired.LEVEL for d in all_.values()) for all_ in found]) > 0.1


def test_large_effects_are_found_with_their_sign():
    found = list(simulated([0.05, -0.05], count=200))
    assert np.mean([all_[0].verdict == "higher" for all_ in found]) > 0.99
    assert np.mean([all_[1].verdict == "lower" for all_ in found]) > 0.99


@pytest.mark.parametrize(("seeds", "tests"), [(3, 1), (5, 4), (10, 4)])
def test_what_can_be_detected_is_found_as_often_as_stated(seeds, tests):
    random = np.random.default_rng(0)
    spread = random.normal(size=seeds)
    spread *= 0.01 / np.std(spread, ddof=1)
    effect = paired.detectable(spread, tests=tests)
    values = random.normal(effect, 0.01, (4 * SIMULATIONS, seeds))
    p = scipy.stats.ttest_1samp(values, 0, axis=1).pvalue
    assert np.mean(p <= paired.LEVEL / tests) == pytest.approx(paired.POWER, abs=0.015)

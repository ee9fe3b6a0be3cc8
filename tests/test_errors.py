"""What the error for an unknown name says."""

import pytest

from flaxattn.errors import unknown


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        (
            "n03x",
            4,
            "unknown kind 'n03x': did you mean n03 or n02 or n01? Known: n00, n01, n02, n03.",
        ),
        ("other", 2, "unknown kind 'other': there is none like it. Known: n00, n01."),
        ("n20x", 21, "unknown kind 'n20x': did you mean n20 or n12 or n10?"),
    ],
)
def test_the_nearest_names_and_all_unless_they_are_many(name, count, message):
    known = [f"n{i:02}" for i in reversed(range(count))]
    assert str(unknown("kind", name, known)) == message


def test_a_list_that_is_too_long_is_counted():
    known = [f"a_name_of_{i}" for i in range(99)]
    assert str(unknown("kind", "x", known)).endswith("none like it. 99 are known.")
    sentence = str(unknown("kind", "x", known, listed="show them"))
    assert sentence.endswith("none like it. 99 are known: see `show them`.")


def test_many_names_are_listed_where_none_is_near():
    known = [f"n{i:02}" for i in range(30)]
    assert str(unknown("kind", "other", known)).endswith(f"Known: {', '.join(known)}.")

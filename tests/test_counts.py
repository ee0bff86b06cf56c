"""Nouns of counts, and units of sizes, in messages and captions."""

import pytest

from vmae_lab.utils.counts import counted, size_text


@pytest.mark.parametrize(
    ("number", "noun", "form", "text"),
    [
        (1, "seed", "", "1 seed"),
        (0, "seed", "", "0 seeds"),
        (2, "more seed", "", "2 more seeds"),
        (2, "class", "", "2 classes"),
        (2, "micro-batch", "", "2 micro-batches"),
        (1, "loader process", "", "1 loader process"),
        (3, "box", "", "3 boxes"),
        (1200, "step", ",d", "1,200 steps"),
        (1.0, "point", "g", "1 point"),
        (0.5, "point", "g", "0.5 points"),
    ],
)
def test_a_noun_agrees_with_its_number(number, noun, form, text):
    assert counted(number, noun, form) == text


def test_small_sizes_are_not_zero():
    sizes = (3 << 18, 10 << 20, 1 << 30, 5 << 29)
    assert [size_text(count) for count in sizes] == ["0.75 MiB", "10 MiB", "1.0 GiB", "2.5 GiB"]

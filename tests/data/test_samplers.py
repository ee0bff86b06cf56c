"""The order of samples: random access, exact shares of sources, and complete epochs per source."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmae_lab.data.samplers import EpochOrder, MixtureOrder, round_counts, sample_order

# Unequal and interleaved, as nobody promises that a pool's samples come sorted by source.
POOL = ["a", "b", "a", "a", "b", "a", "c", "a", "a", "a", "a"]
SIZES = {"a": 8, "b": 2, "c": 1}
ROUND = len(POOL)
EXPONENTS = st.integers(0, 20).map(lambda n: n / 20)


def orders(seed: int = 3) -> dict:
    return {"epochs": EpochOrder(ROUND, seed)} | {x: MixtureOrder(POOL, x, seed) for x in (0.0, 0.5, 1.0)}


def drawn(order, positions) -> list[int]:
    return [order[position] for position in positions]


@pytest.mark.parametrize("name", list(orders()))
def test_a_position_always_gives_the_same_sample(name):
    """Resumed runs and data loader workers start at any position and skip. They must get the same samples."""
    stream = drawn(orders()[name], range(5 * ROUND))
    backwards = reversed(range(5 * ROUND))
    assert drawn(orders()[name], backwards) == stream[::-1]
    worker = orders()[name]
    assert [drawn(worker, range(first, 5 * ROUND, 3)) for first in (1, 0, 2)] == [stream[1::3], stream[0::3], stream[2::3]]


@pytest.mark.parametrize("name", list(orders()))
def test_seeds_and_rounds_differ(name):
    """Epochs and seeds must have different orders."""
    stream = drawn(orders()[name], range(2 * ROUND))
    assert drawn(orders(seed=4)[name], range(2 * ROUND)) != stream
    assert stream[:ROUND] != stream[ROUND:]


def test_an_epoch_has_every_sample_once():
    order = EpochOrder(7, seed=3)
    assert all(sorted(drawn(order, range(start, start + 7))) == list(range(7)) for start in (0, 7, 14))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.75])
def test_every_round_has_the_exact_share_of_each_source(exponent):
    """Shares are exact in every round, so that short runs have them, too."""
    order, counts = MixtureOrder(POOL, exponent, seed=0), round_counts(list(SIZES.values()), exponent)
    for start in range(0, 4 * ROUND, ROUND):
        seen = Counter(POOL[index] for index in drawn(order, range(start, start + ROUND)))
        assert seen == dict(zip(SIZES, counts, strict=True))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_no_clip_repeats_before_all_of_its_source_were_used(exponent):
    """A small source has several epochs in one round."""
    order = MixtureOrder(POOL, exponent, seed=0)
    stream = drawn(order, range(20 * ROUND))
    for source, size in SIZES.items():
        own = [index for index in stream if POOL[index] == source]
        epochs = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 3
        assert [len(set(epoch)) for epoch in epochs] == [size] * len(epochs), source


def test_mixing_by_size_is_one_shuffled_pool():
    """So the default, `mixing: 1`, equals pre-training without mixing."""
    plain = EpochOrder(ROUND, seed=5)
    assert drawn(sample_order(POOL, 1.0, seed=5), range(3 * ROUND)) == drawn(plain, range(3 * ROUND))
    assert drawn(sample_order(POOL, 0.5, seed=5), range(ROUND)) == drawn(MixtureOrder(POOL, 0.5, seed=5), range(ROUND))


def test_uniform_mixing_gives_equal_shares():
    assert round_counts([1, 2, 9], 0.0) == [4, 4, 4]
    assert round_counts([1, 2, 8], 0.0) == [4, 4, 3], "the remainder goes to the first sources"


@pytest.mark.parametrize(
    ("sizes", "exponent", "counts"),
    [
        ([16, 9, 4, 1], 0.5, [12, 9, 6, 3]),  # roots 4, 3, 2, 1; sum 10; 30 samples: shares 12, 9, 6, 3
        ([9, 4, 1], 0.5, [7, 5, 2]),  # roots 3, 2, 1; 14 samples: shares 7, 4 2/3, 2 1/3; the remainder goes to 2/3
        ([16, 4, 1], 0.5, [12, 6, 3]),  # roots 4, 2, 1; 21 samples
        ([25, 16, 9], 0.5, [21, 17, 12]),  # roots 5, 4, 3; 50 samples: 20 5/6, 16 2/3, 12 1/2; remainders go to 5/6 and 2/3
        ([7, 2, 1], 1.0, [7, 2, 1]),
        ([5], 0.3, [5]),
    ],
)
def test_counts_computed_by_hand(sizes, exponent, counts):
    assert round_counts(sizes, exponent) == counts


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), EXPONENTS)
@example([1, 500], 0.0)
@example([1, 499, 500], 0.05)
def test_counts_fill_the_round_and_increase_with_size(sizes, exponent):
    """With exponents from 0 to 1, the share of the smallest source is at least its size."""
    counts = round_counts(sizes, exponent)
    assert sum(counts) == sum(sizes)
    assert min(counts) >= 1
    ordered = sorted(zip(sizes, counts, strict=True))
    for (size, count), (larger, more) in pairwise(ordered):
        tied = exponent == 0 or size == larger  # equal shares may differ by one because of the remainder
        assert more >= count - tied


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=8), st.sampled_from([0, 1]))
def test_counts_differ_from_exact_shares_by_less_than_one(sizes, exponent):
    """The exact share is a fraction for exponents 0 and 1."""
    weights = [Fraction(size) ** exponent for size in sizes]
    exact = [sum(sizes) * weight / sum(weights) for weight in weights]
    assert all(abs(count - share) < 1 for count, share in zip(round_counts(sizes, exponent), exact, strict=True))


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="has no samples"):
        sample_order([], 1.0, seed=0)

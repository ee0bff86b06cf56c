"""The order of samples: any position at any time, each source in its share, no clip twice before all of its source once."""

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
def test_a_position_says_the_same_whenever_and_by_whomever_it_is_asked(name):
    """A resumed run and each loader worker start in the middle and skip; they must see what the unbroken run saw."""
    stream = drawn(orders()[name], range(5 * ROUND))
    backwards = reversed(range(5 * ROUND))
    assert drawn(orders()[name], backwards) == stream[::-1]
    worker = orders()[name]
    assert [drawn(worker, range(first, 5 * ROUND, 3)) for first in (1, 0, 2)] == [stream[1::3], stream[0::3], stream[2::3]]


@pytest.mark.parametrize("name", list(orders()))
def test_seeds_and_rounds_differ(name):
    """An order that repeats, or that seeds share, would make seeds and epochs less independent than they are told to be."""
    stream = drawn(orders()[name], range(2 * ROUND))
    assert drawn(orders(seed=4)[name], range(2 * ROUND)) != stream
    assert stream[:ROUND] != stream[ROUND:]


def test_an_epoch_has_every_sample_once():
    order = EpochOrder(7, seed=3)
    assert all(sorted(drawn(order, range(start, start + 7))) == list(range(7)) for start in (0, 7, 14))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.75])
def test_every_round_holds_each_source_in_its_share(exponent):
    """Exact, not on average: arms of a few rounds would otherwise differ from what their name says."""
    order, counts = MixtureOrder(POOL, exponent, seed=0), round_counts(list(SIZES.values()), exponent)
    for start in range(0, 4 * ROUND, ROUND):
        seen = Counter(POOL[index] for index in drawn(order, range(start, start + ROUND)))
        assert seen == dict(zip(SIZES, counts, strict=True))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_no_clip_of_a_source_is_seen_twice_before_all_were_seen_once(exponent):
    """In the order of the stream, where a small source goes through several epochs in one round."""
    order = MixtureOrder(POOL, exponent, seed=0)
    stream = drawn(order, range(20 * ROUND))
    for source, size in SIZES.items():
        own = [index for index in stream if POOL[index] == source]
        epochs = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 3
        assert [len(set(epoch)) for epoch in epochs] == [size] * len(epochs), source


def test_by_size_the_mixture_is_the_plain_shuffled_pool():
    """So that `mixing: 1`, the default, changes no pre-training that was run without it."""
    plain = EpochOrder(ROUND, seed=5)
    assert drawn(sample_order(POOL, 1.0, seed=5), range(3 * ROUND)) == drawn(plain, range(3 * ROUND))
    assert drawn(sample_order(POOL, 0.5, seed=5), range(ROUND)) == drawn(MixtureOrder(POOL, 0.5, seed=5), range(ROUND))


def test_uniform_mixing_gives_equal_shares():
    assert round_counts([1, 2, 9], 0.0) == [4, 4, 4]
    assert round_counts([1, 2, 8], 0.0) == [4, 4, 3], "what does not divide goes to the first"


@pytest.mark.parametrize(
    ("sizes", "exponent", "counts"),
    [
        ([16, 9, 4, 1], 0.5, [12, 9, 6, 3]),  # roots 4, 3, 2, 1 of 10; 30 in all: shares 12, 9, 6, 3
        ([9, 4, 1], 0.5, [7, 5, 2]),  # roots 3, 2, 1 of 6; 14 in all: 7, 4 2/3, 2 1/3: one left, to the 2/3
        ([16, 4, 1], 0.5, [12, 6, 3]),  # roots 4, 2, 1 of 7; 21 in all
        ([25, 16, 9], 0.5, [21, 17, 12]),  # roots 5, 4, 3 of 12; 50 in all: 20 5/6, 16 2/3, 12 1/2: two left, to 5/6 and 2/3
        ([7, 2, 1], 1.0, [7, 2, 1]),
        ([5], 0.3, [5]),
    ],
)
def test_counts_worked_out_by_hand(sizes, exponent, counts):
    assert round_counts(sizes, exponent) == counts


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), EXPONENTS)
@example([1, 500], 0.0)
@example([1, 499, 500], 0.05)
def test_counts_fill_the_round_and_follow_the_sizes(sizes, exponent):
    """Every exact share is 1 at least: the smallest source's is never below its size for exponents from 0 to 1."""
    counts = round_counts(sizes, exponent)
    assert sum(counts) == sum(sizes)
    assert min(counts) >= 1
    ordered = sorted(zip(sizes, counts, strict=True))
    for (size, count), (larger, more) in pairwise(ordered):
        tied = exponent == 0 or size == larger  # equal shares differ by one where they do not divide
        assert more >= count - tied


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=8), st.sampled_from([0, 1]))
def test_counts_lie_within_one_of_the_exact_share(sizes, exponent):
    """Where the share is a fraction that can be told exactly."""
    weights = [Fraction(size) ** exponent for size in sizes]
    exact = [sum(sizes) * weight / sum(weights) for weight in weights]
    assert all(abs(count - share) < 1 for count, share in zip(round_counts(sizes, exponent), exact, strict=True))


def test_an_empty_pool_is_refused():
    with pytest.raises(ValueError, match="no samples to draw from"):
        sample_order([], 1.0, seed=0)

"""The order of samples, as a pure function of the seed and the position in the stream."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from vmae_lab.utils.seeding import numpy_generator


class Order(Protocol):
    """An endless stream of samples: position -> index of a sample."""

    def __getitem__(self, position: int) -> int: ...

    def stand_in(self, position: int, attempt: int) -> int:
        """Return another sample of the same source, to replace an unreadable one. Attempts count from 1."""
        ...


class EpochOrder:
    """An endless stream over `size` samples. Every epoch has each sample once, in a new order.

    The sample at position p is `order(p // size)[p % size]`. So the samples do not depend on resuming or on the number of
    workers and processes.
    """

    def __init__(self, size: int, seed: int, purpose: str = "order"):
        if size < 1:
            raise ValueError("the data set has no samples")
        self.size, self.seed, self.purpose = size, seed, purpose
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._stand_ins: dict[int, EpochOrder] = {}

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.size)
        if epoch != self._epoch:
            self._order = numpy_generator(self.seed, self.purpose, epoch).permutation(self.size)
            self._epoch = epoch
        return int(self._order[index])

    def stand_in(self, position: int, attempt: int) -> int:
        if attempt not in self._stand_ins:
            self._stand_ins[attempt] = EpochOrder(self.size, self.seed, f"{self.purpose}, stand-in {attempt}")
        return self._stand_ins[attempt][position]


class MixtureOrder:
    """An endless stream over several sources, in shares that differ from their sizes.

    A round has as many positions as there are samples, with a fixed number of samples of each source, shuffled. Each source has
    its own epochs: a sample is used again only after all samples of its source have been used.
    """

    def __init__(
        self, sources: Sequence[str] | np.ndarray, exponent: float, seed: int, weights: Mapping[str, float] | None = None
    ):
        names = list(dict.fromkeys(sources))
        self.members = [np.flatnonzero(np.asarray(sources) == name) for name in names]
        sizes = [len(rows) for rows in self.members]
        self.counts = round_counts(sizes, exponent, [weights[name] for name in names] if weights else None)
        self.seed = seed
        self.orders = [EpochOrder(size, seed, f"order in {name}") for name, size in zip(names, sizes, strict=True)]
        self._round, self._sources, self._ranks = -1, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        source, index = self._locate(position)
        return int(self.members[source][self.orders[source][index]])

    def stand_in(self, position: int, attempt: int) -> int:
        source, index = self._locate(position)
        return int(self.members[source][self.orders[source].stand_in(index, attempt)])

    def _locate(self, position: int) -> tuple[int, int]:
        """Return the source at a position, and the position in the order of that source."""
        number, index = divmod(position, sum(self.counts))
        if number != self._round:
            rng = numpy_generator(self.seed, "order of sources", number)
            self._sources = rng.permutation(np.repeat(np.arange(len(self.counts)), self.counts))
            self._ranks = np.empty_like(self._sources)  # samples of the same source earlier in the round
            for source, count in enumerate(self.counts):
                self._ranks[self._sources == source] = np.arange(count)
            self._round = number
        source = int(self._sources[index])
        return source, number * self.counts[source] + int(self._ranks[index])


def round_counts(sizes: Sequence[int], exponent: float, weights: Sequence[float] | None = None) -> list[int]:
    """Return the samples of each source in a round of `sum(sizes)`: proportional to `weights` or `size ** exponent`.

    Every source has at least one. Exponent 1 is by size, 0 is uniform, 1/2 corresponds to temperature 2.
    """
    shares = np.asarray(weights if weights else np.asarray(sizes, dtype=float) ** exponent, dtype=float)
    exact = sum(sizes) * shares / shares.sum()
    counts = np.maximum(1, np.floor(exact).astype(int))
    for index in np.argsort(np.floor(exact) - exact, kind="stable")[: max(0, sum(sizes) - int(counts.sum()))]:
        counts[index] += 1  # the largest remainders
    return counts.tolist()


def sample_order(
    sources: Sequence[str] | np.ndarray, exponent: float, seed: int, weights: Mapping[str, float] | None = None
) -> Order:
    """Return the stream of samples. `sources` has the source of each sample. If shares are by size, they are one pool."""
    if exponent == 1.0 and not weights:
        return EpochOrder(len(sources), seed)
    return MixtureOrder(sources, exponent, seed, weights)

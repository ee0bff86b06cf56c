"""The order of samples: a pure function of (seed, position in the stream)."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from vmae_lab.utils.seeding import numpy_generator


class Order(Protocol):
    """An endless stream: position -> sample."""

    def __getitem__(self, position: int) -> int: ...

    def stand_in(self, position: int, attempt: int) -> int:
        """Another sample of the same source, to replace an unreadable one at the `attempt`-th try (from 1)."""
        ...


class EpochOrder:
    """An endless stream over `size` samples, each once per epoch, each epoch in a new order.

    The sample at position p is `order(p // size)[p % size]`, so a resumed run or another number of workers or processes sees
    the same samples.
    """

    def __init__(self, size: int, seed: int, purpose: str = "order"):
        if size < 1:
            raise ValueError("there are no samples to draw from")
        self.size, self.seed, self.purpose = size, seed, purpose
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        self._stand_ins: dict[int, EpochOrder] = {}

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            self._order = numpy_generator(self.seed, self.purpose, epoch).permutation(self.size)
            self._epoch = epoch
        return int(self._order[place])

    def stand_in(self, position: int, attempt: int) -> int:
        if attempt not in self._stand_ins:
            self._stand_ins[attempt] = EpochOrder(self.size, self.seed, f"{self.purpose}, stand-in {attempt}")
        return self._stand_ins[attempt][position]


class MixtureOrder:
    """An endless stream over several sources, in shares that differ from their sizes.

    A round has as many positions as all sources have samples. It holds a fixed number of samples of each source, shuffled. Each
    source has epochs of its own: no sample is seen twice before all of its source were seen once.
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
        source, place = self._place(position)
        return int(self.members[source][self.orders[source][place]])

    def stand_in(self, position: int, attempt: int) -> int:
        source, place = self._place(position)
        return int(self.members[source][self.orders[source].stand_in(place, attempt)])

    def _place(self, position: int) -> tuple[int, int]:
        """The source at a position, and the place in that source's own order."""
        number, place = divmod(position, sum(self.counts))
        if number != self._round:
            rng = numpy_generator(self.seed, "order of sources", number)
            self._sources = rng.permutation(np.repeat(np.arange(len(self.counts)), self.counts))
            self._ranks = np.empty_like(self._sources)  # samples of the same source before each place of the round
            for source, count in enumerate(self.counts):
                self._ranks[self._sources == source] = np.arange(count)
            self._round = number
        source = int(self._sources[place])
        return source, number * self.counts[source] + int(self._ranks[place])


def round_counts(sizes: Sequence[int], exponent: float, weights: Sequence[float] | None = None) -> list[int]:
    """Samples of each source in a round of `sum(sizes)`: in proportion to `weights` or to `size ** exponent`, at least one.

    Exponent 1 is by size, 0 uniform over sources; between them the mixture is tempered (exponent 1/2 is temperature 2).
    """
    shares = np.asarray(weights if weights else np.asarray(sizes, dtype=float) ** exponent, dtype=float)
    exact = sum(sizes) * shares / shares.sum()
    counts = np.maximum(1, np.floor(exact).astype(int))
    for place in np.argsort(np.floor(exact) - exact, kind="stable")[: max(0, sum(sizes) - int(counts.sum()))]:
        counts[place] += 1  # the largest remainders
    return counts.tolist()


def sample_order(
    sources: Sequence[str] | np.ndarray, exponent: float, seed: int, weights: Mapping[str, float] | None = None
) -> Order:
    """The stream over samples that come from `sources` (a name per sample): one shuffled pool if shares are by size."""
    if exponent == 1.0 and not weights:
        return EpochOrder(len(sources), seed)
    return MixtureOrder(sources, exponent, seed, weights)

"""The order of samples: a pure function of (seed, position in the stream)."""

import numpy as np

from vmae_lab.randomness import numpy_generator


class EpochOrder:
    """An endless stream over `size` samples, each once an epoch, each epoch in a new order.

    Position p of the stream is sample `order(p // size)[p % size]`, so that a resumed run or another number of workers
    or processes sees the same samples.
    """

    def __init__(self, size: int, seed: int, purpose: str = "order"):
        if size < 1:
            raise ValueError("there are no samples to draw from")
        self.size, self.seed, self.purpose = size, seed, purpose
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            self._order = numpy_generator(self.seed, self.purpose, epoch).permutation(self.size)
            self._epoch = epoch
        return int(self._order[place])

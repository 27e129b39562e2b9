"""Random numbers that belong to a row of a batch, not to the batch.

Every random decision of a world or a learner (where a world starts, when an agent explores, what is
drawn from the replay) comes from a :class:`RandomStreams`: one independent stream per row. A row's
numbers depend on its own seed and on how many it has drawn, never on how many rows stand beside it.
So an environment behaves the same alone and in a batch of a thousand, and replicate 7 of ten equals
a run of its seed alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TO_UNIT = 2.0**-53


class RandomStreams:
    """Independent random streams, one per row, as SplitMix64 counters.

    The k-th number of a row is a hash of (the row's key, k), so all rows draw in one NumPy call and
    the whole state is two integer arrays.

    Parameters
    ----------
    seeds : int or sequence of int
        One seed, or R seeds for R blocks of rows.
    rows_per_seed : int
        Rows in each block; row i of seed s gets the same key whatever the other arguments are.
    purpose : str
        Names what the numbers are for, so that two users of one seed do not share numbers.

    Notes
    -----
    Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014, with the output function given there as ``mix64variant13``.
    """

    def __init__(self, seeds: int | Sequence[int], rows_per_seed: int, purpose: str):
        seeds = list(seeds) if isinstance(seeds, Sequence | np.ndarray) else [seeds]
        salt = zlib.crc32(purpose.encode())
        self._key = np.concatenate(
            [
                np.random.SeedSequence([check_seed(s), salt]).generate_state(
                    rows_per_seed, np.uint64
                )
                for s in seeds
            ]
        )
        self._count = np.zeros(len(self._key), np.uint64)

    def __len__(self) -> int:
        return len(self._key)

    def bits(self, n: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the next ``n`` 64-bit integers of each chosen row, ``(rows, n)`` uint64."""
        count = self._count[rows]
        steps = count[:, None] + np.arange(1, n + 1, dtype=np.uint64)
        self._count[rows] = count + np.uint64(n)
        z: np.ndarray = self._key[rows][:, None] + steps * _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return z ^ (z >> np.uint64(31))

    def uniform(self, n: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the next ``n`` numbers in [0, 1) of each chosen row, ``(rows, n)`` float64."""
        return (self.bits(n, rows) >> np.uint64(11)) * _TO_UNIT

    def integers(
        self, high: int | np.ndarray, n: int, rows: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        """Return ``n`` integers in [0, high) for each chosen row, ``(rows, n)`` int64."""
        return (self.uniform(n, rows) * high).astype(np.int64)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the keys and counters, to be restored with :meth:`load_state_dict`."""
        return {"key": self._key.view(np.int64).copy(), "count": self._count.view(np.int64).copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where the streams that wrote ``state`` stood."""
        self._key = np.asarray(state["key"]).astype(np.int64).view(np.uint64)
        self._count = np.asarray(state["count"]).astype(np.int64).view(np.uint64)


def check_seed(seed: int) -> int:
    """Return ``seed`` as an int, or raise ``ValueError`` if it is not a non-negative integer."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"a seed is an integer of at least 0, got {seed!r}")
    return int(seed)

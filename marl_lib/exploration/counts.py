"""Counting: how often something like this was seen (Tang et al. 2017, "#Exploration")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from marl_lib.config import require
from marl_lib.seeding import RandomStreams


class Counts:
    """A reward of scale / √n(s), where n counts the observations with the same hash as s.

    The hash is the signs of ``bits`` random projections (SimHash; Tang et al. 2017, equation 1 and
    section 2.2): observations at a small angle tend to share it. Each agent of a team counts for
    itself.

    Parameters
    ----------
    obs_dim, n_agents : int
    seeds : sequence of int
        One for each of R replicates, which see the same projections of their own numbers.
    scale : float
    bits : int
        At most 24.
    """

    def __init__(
        self, obs_dim: int, n_agents: int, seeds: Sequence[int], scale: float, bits: int = 16
    ):
        self.check(bits)
        self.scale = scale
        uniform = RandomStreams(list(seeds), 1, "hash").uniform(bits * (obs_dim + 1))
        self.projection = (2 * uniform - 1).reshape(len(seeds), bits, obs_dim + 1)
        self.table = np.zeros((len(seeds), n_agents, 2**bits), np.int64)

    @staticmethod
    def check(bits: int) -> None:
        """Refuse tables that do not fit into memory."""
        require(1 <= bits <= 24, "bits", bits, "from 1 to 24")

    def reward(self, stored: dict[str, Tensor], next_obs: np.ndarray) -> np.ndarray:
        """Return the bonus (R × B, N) for observations (R × B, N, D), which are counted."""
        r, _, n = *self.projection.shape[:2], next_obs.shape[1]
        x = next_obs.reshape(r, -1, n, next_obs.shape[-1])  # (R, B, N, D)
        weight, shift = self.projection[..., :-1], self.projection[..., -1]
        signs = np.einsum("rbnd,rkd->rbnk", x, weight) + shift[:, None, None] > 0
        code = (signs << np.arange(signs.shape[-1])).sum(-1)  # (R, B, N)
        place = np.arange(r)[:, None, None], np.arange(n)[None, None], code
        np.add.at(self.table, place, 1)
        bonus: np.ndarray = self.scale / np.sqrt(self.table[place])
        return bonus.reshape(-1, n).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"table": self.table.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the counts."""
        self.table[...] = np.asarray(state["table"])

"""Bonuses: reward of a learner's own making, for what is new to it.

A bonus is a value of the configuration. The bases of the learners call it as experience comes in,
and nowhere else, so any algorithm takes any bonus; evaluation sees the world's rewards alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from marl_lib.config import Count, Positive, Variant
from marl_lib.exploration.counts import Counts
from marl_lib.spec import Spec


class Novelty(Protocol):
    """What a :class:`Bonus` builds."""

    def reward(self, stored: dict[str, Tensor], next_obs: np.ndarray) -> np.ndarray:
        """Return the bonus (R × B, N) of a step that led to ``next_obs`` (R × B, N, D)."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next bonuses depend on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""


@dataclass(frozen=True)
class Bonus(Variant):
    """A reward for what is new."""

    def build(self, spec: Spec, seeds: Sequence[int]) -> Novelty | None:
        """Return what pays the bonus to R replicates, one for each seed; None for nothing."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoBonus(Bonus, kind="none"):
    """The world's rewards and no others."""

    def build(self, spec: Spec, seeds: Sequence[int]) -> None:
        """Return None."""


@dataclass(frozen=True)
class CountBonus(Bonus, kind="count"):
    """Pays scale / √n for an observation of a kind that was met n times.

    Parameters
    ----------
    scale : float
        The first bonus, in units of reward.
    bits : int
        Observations are of one kind if so many random projections of them have the same signs; at
        most 24.
    """

    scale: Positive = 0.1
    bits: Count = 16

    def check(self) -> None:
        """Refuse more kinds than can be counted."""
        Counts.check(self.bits)

    def build(self, spec: Spec, seeds: Sequence[int]) -> Counts:
        """Return the counts."""
        return Counts(spec.obs_dim, spec.n_agents, seeds, self.scale, self.bits)

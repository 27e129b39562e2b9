"""What a learner must know of a world: sizes, actions, how an observation is arranged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """How an observation is made of tokens, for networks that attend to them.

    The observation is ``count`` blocks of ``1 + size`` numbers: a flag that is 1 where there is
    such a token and 0 where the block is padding, and what is known of it. Without flags, all are
    there.

    Parameters
    ----------
    count : int
    size : int
        Numbers of each token, without the flag.
    ordered : bool
        The place in the order means something: a history, oldest first.
    flagged : bool
        Each block begins with its flag.
    """

    count: int
    size: int
    ordered: bool
    flagged: bool = True


@dataclass(frozen=True)
class Spec:
    """The sizes of a world, as its learners need them.

    Parameters
    ----------
    obs_dim : int
        Length D of one agent's observation.
    n_actions : int
        Number A of discrete actions, or parts of a continuous one.
    n_agents : int
        N.
    bounds : (low, high) arrays (A,) or None
        Limits of a continuous action; None if actions are discrete.
    tokens : Tokens or None
        How an observation is made of tokens, if it is.
    action_masks : bool
        The world reports illegal actions.
    """

    obs_dim: int
    n_actions: int
    n_agents: int = 1
    bounds: tuple[np.ndarray, np.ndarray] | None = None
    tokens: Tokens | None = None
    action_masks: bool = False

    @property
    def state_dim(self) -> int:
        """Length of the state that centralised training sees: all observations side by side."""
        return self.n_agents * self.obs_dim

    @property
    def state_tokens(self) -> Tokens:
        """How the state is made of tokens: the observation of each agent is one."""
        return Tokens(self.n_agents, self.obs_dim, ordered=True, flagged=False)

"""Mixers: from the values of the agents' actions to the value of the team's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from marl_lib.nn.layers import mlp


class SumMixer(nn.Module):
    """The sum of the agents' values (VDN, Sunehag et al. 2018, equation 1); no parameters."""

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        """Return Q_tot, (..., N) -> (...); the state changes nothing."""
        return q.sum(-1)


class MonotonicMixer(nn.Module):
    """Mixes the agents' values by weights of at least zero that the state chooses (QMIX).

    Q_tot = abs(w₂(s))ᵀ ELU(abs(W₁(s)) q + b₁(s)) + b₂(s), so that Q_tot rises with every agent's
    value and the best joint action is made of each agent's best.

    Parameters
    ----------
    n_agents : int
        N.
    state_dim : int
        S.
    width : int
        Hidden units of the mixing network.
    hyper_width : int
        Hidden units (ReLU) of the networks of the state that give W₁ and w₂.

    Notes
    -----
    Source: T. Rashid et al., "QMIX", 2018, section 4 and figure 2 (equation 4 is the constraint).
    b₁ is linear in the state; b₂ is a two-layer network of it, with ``width`` ReLU units. W₁ and w₂
    come from two layers each, as in the authors' later code; the paper of 2018 has one.
    In one state Q_tot is more than monotonic: as ELU is convex and no weight is below zero, an
    agent's value counts for no less when another's rises. Where one agent is enough and a second
    adds nothing, the mixer can only come near.
    """

    def __init__(self, n_agents: int, state_dim: int, width: int = 32, hyper_width: int = 64):
        super().__init__()
        self.n_agents = n_agents
        # The first layers of all four read the same state: one product instead of four.
        self._sizes = [hyper_width, hyper_width, width, width]
        self.read = nn.Linear(state_dim, sum(self._sizes))
        self.first_weight = nn.Linear(hyper_width, width * n_agents)
        self.second_weight = nn.Linear(hyper_width, width)
        self.second_bias = nn.Linear(width, 1)

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        """Return Q_tot of the agents' values q (..., N) in the state (..., S), (...)."""
        for_first, for_second, for_bias, first_bias = self.read(state).split(self._sizes, dim=-1)
        weight = self.first_weight(for_first.relu()).abs()
        weight = weight.unflatten(-1, (self.n_agents, -1))  # (..., N, width)
        hidden = elu((q.unsqueeze(-1) * weight).sum(-2) + first_bias)  # (..., width)
        out = (hidden * self.second_weight(for_second.relu()).abs()).sum(-1)
        return out + self.second_bias(for_bias.relu()).squeeze(-1)


class ForwardMixer(nn.Module):
    """Any function of the agents' values and the state: what a team's value may be at all.

    Used by Weighted QMIX (Rashid et al. 2020, section 4) for the value that its targets rest on; as
    it is not monotonic, no agent could act on its own part of it.

    Parameters
    ----------
    n_agents, state_dim : int
        N, S.
    width : int
        Of two hidden layers with ReLU.
    """

    def __init__(self, n_agents: int, state_dim: int, width: int = 64):
        super().__init__()
        self.body = mlp(n_agents + state_dim, (width, width), 1)

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        """Return Q_tot of the agents' values q (..., N) in the state (..., S), (...)."""
        total: Tensor = self.body(torch.cat([q, state], dim=-1)).squeeze(-1)
        return total

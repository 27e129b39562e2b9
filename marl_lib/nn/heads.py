"""Heads: what an algorithm wants to know of features, (..., F) -> (..., out)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from marl_lib.nn.layers import orthogonal


class QHead(nn.Module):
    """Action values, (..., F) -> (..., A).

    Parameters
    ----------
    size_in, n_actions : int
    dueling : bool
        Q = V + A - mean(A), with V and A two linear heads (Wang et al. 2016, equation 9).
    """

    def __init__(self, size_in: int, n_actions: int, dueling: bool = False):
        super().__init__()
        self.advantage = nn.Linear(size_in, n_actions)
        self.value = nn.Linear(size_in, 1) if dueling else None

    def forward(self, features: Tensor) -> Tensor:
        """Return Q(·), (..., A)."""
        q: Tensor = self.advantage(features)
        if self.value is not None:
            q = self.value(features) + q - q.mean(-1, keepdim=True)
        return q


class PolicyHead(nn.Module):
    """Logits, or means and log standard deviations, of a policy that starts near uniform.

    Parameters
    ----------
    size_in, n_actions : int
    continuous : bool
        Add a learned log standard deviation for each part, which no observation changes.
    """

    def __init__(self, size_in: int, n_actions: int, continuous: bool = False):
        super().__init__()
        self.mean = orthogonal(size_in, n_actions, 0.01)
        self.log_std = nn.Parameter(torch.zeros(n_actions)) if continuous else None

    def forward(self, features: Tensor) -> Tensor:
        """Return (..., A), with log standard deviations (..., 2 A)."""
        out: Tensor = self.mean(features)
        if self.log_std is not None:
            out = torch.cat([out, self.log_std.expand_as(out)], dim=-1)
        return out

"""Distributions over actions, made from what a network puts out.

They are sampled by numbers that are handed in, so that a row's actions depend on its own stream of
random numbers and not on the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Categorical:
    """One of A actions, from unnormalised log-probabilities (..., A)."""

    def __init__(self, output: Tensor):
        self.log_p = output.log_softmax(-1)

    @property
    def probs(self) -> Tensor:
        """Probabilities (..., A)."""
        return self.log_p.exp()

    def sample(self, noise: Tensor) -> Tensor:
        """Return actions (...) int64 from uniform numbers in [0, 1), (..., 1)."""
        below = self.probs.cumsum(-1)[..., :-1] <= noise  # the last sum is 1 up to rounding
        return below.sum(-1)

    def mode(self) -> Tensor:
        """Return the likeliest actions (...)."""
        return self.log_p.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log π(a) of actions (...), (...)."""
        return self.log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return -Σ π log π in nats, (...)."""
        return -(self.log_p.exp() * self.log_p).sum(-1)


class DiagonalGaussian:
    """A independent normal numbers, from means and log standard deviations (..., 2 A)."""

    def __init__(self, output: Tensor):
        self.mean, self.log_std = output.chunk(2, dim=-1)

    def sample(self, noise: Tensor) -> Tensor:
        """Return actions (..., A) from uniform numbers in [0, 1), (..., A)."""
        inside = noise.clamp(1e-7, 1 - 1e-7)  # the normal quantile of 0 is infinite
        return self.mean + self.log_std.exp() * torch.special.ndtri(inside)

    def mode(self) -> Tensor:
        """Return the means (..., A)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log density of actions (..., A), summed over their parts, (...)."""
        z = (action - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats, (...)."""
        return (self.log_std + 0.5 * (1 + math.log(2 * math.pi))).sum(-1)


Distribution = Categorical | DiagonalGaussian

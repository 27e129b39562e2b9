"""Distributions over actions, made from what a network puts out.

They are sampled by numbers that are handed in, so that a row's actions depend on its own stream of
random numbers and not on the batch.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from marl_lib.config import require


class Categorical:
    """One of A actions, from unnormalised log-probabilities (..., A).

    Parameters
    ----------
    output : (..., A)
    mask : (..., A) bool or None
        Which actions are legal; the others are never sampled.
    """

    def __init__(self, output: Tensor, mask: Tensor | None = None):
        if mask is not None:  # not -inf, for which the entropy would be NaN
            output = output.masked_fill(~mask, torch.finfo(output.dtype).min)
        self.log_p = output.log_softmax(-1)

    @property
    def probs(self) -> Tensor:
        """Probabilities (..., A)."""
        return self.log_p.exp()

    def sample(self, noise: Tensor) -> Tensor:
        """Return actions (...) int64 from uniform numbers in [0, 1], (..., 1).

        None has a probability of zero: the noise stays below what all probabilities add up to.
        """
        sums = self.probs.cumsum(-1)  # the last is 1 up to rounding
        below = sums[..., :-1] <= noise.clamp(max=1 - 2**-24) * sums[..., -1:]
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


def standard_normal(noise: Tensor) -> Tensor:
    """Return standard normal numbers from uniform ones in [0, 1], of any shape."""
    return torch.special.ndtri(noise.clamp(1e-7, 1 - 1e-7))  # the quantile of 0 is infinite


class Bounds:
    """Finite limits of continuous actions, and the way to [-1, 1] and back.

    Parameters
    ----------
    low, high : (A,) arrays

    Raises
    ------
    ConfigError
        If they are not finite or not in order.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray):
        ok = np.isfinite([low, high]).all() and (np.asarray(low) < np.asarray(high)).all()
        require(bool(ok), "bounds", (low, high), "finite and in order")
        self.low, self.high = (torch.as_tensor(x, dtype=torch.float32) for x in (low, high))

    def to(self, device: torch.device) -> Bounds:
        """Move the limits to a device; return them."""
        self.low, self.high = self.low.to(device), self.high.to(device)
        return self

    @property
    def half(self) -> Tensor:
        """Half the widths, (A,)."""
        return (self.high - self.low) / 2

    def stretch(self, action: Tensor) -> Tensor:
        """Return actions (..., A) of [-1, 1] in the world's units; beyond, they are clipped."""
        share = (action.clamp(-1, 1) + 1) / 2
        # Rounding may put an action a digit beyond its bound.
        return (self.low + share * (self.high - self.low)).clamp(self.low, self.high)

    def shrink(self, action: Tensor) -> Tensor:
        """Undo :meth:`stretch`."""
        return (action - self.low) * (2 / (self.high - self.low)) - 1


class SquashedGaussian:
    """A independent numbers between bounds: normal ones through tanh, stretched to the bounds.

    Parameters
    ----------
    output : (..., 2 A)
        Means and log standard deviations of the numbers before tanh.
    low, high : (A,)
        Bounds, finite.

    Notes
    -----
    With a = c + h tanh(u), c the middle and h half the width of the bounds, the density of a is
    that of u divided by h (1 - tanh² u) (Haarnoja et al. 2018, "Soft actor-critic algorithms and
    applications", appendix C, here with the width of the bounds).
    """

    def __init__(self, output: Tensor, low: Tensor, high: Tensor):
        self.mean, self.log_std = output.chunk(2, dim=-1)
        self.middle, self.half = (high + low) / 2, (high - low) / 2

    def _squash(self, before: Tensor) -> Tensor:
        return self.middle + self.half * before.tanh()

    def _log_prob_before(self, before: Tensor, z: Tensor) -> Tensor:
        """Return log π(a) for a = c + h tanh(u), u = mean + std z, given u and z.

        1 - tanh² u is zero to rounding where |u| is large; its logarithm written as
        2 (log 2 - u - softplus(-2 u)) is right to the last digit for all u.
        """
        log_slope = 2 * (math.log(2) - before - softplus(-2 * before)) + self.half.log()
        log_normal = -(0.5 * z.square() + self.log_std + 0.5 * math.log(2 * math.pi))
        return (log_normal - log_slope).sum(-1)

    def sample_with_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions (..., A) from uniform numbers (..., A), and log π of them, (...).

        Gradients flow through both to the output of the network. The logarithm is taken before
        tanh, so it is exact where the action has run into its bounds.
        """
        z = standard_normal(noise)
        before = self.mean + self.log_std.exp() * z
        return self._squash(before), self._log_prob_before(before, z)

    def sample(self, noise: Tensor) -> Tensor:
        """Return actions (..., A) from uniform numbers in [0, 1), (..., A)."""
        return self._squash(self.mean + self.log_std.exp() * standard_normal(noise))

    def mode(self) -> Tensor:
        """Return the medians (..., A): the means, squashed.

        The greatest density may lie elsewhere, for wide distributions at the bounds.
        """
        return self._squash(self.mean)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log density of actions (..., A), summed over their parts, (...).

        An action on a bound is judged as the nearest one inside that a float can tell from it.
        """
        inside = 1 - torch.finfo(action.dtype).eps
        before = ((action - self.middle) / self.half).clamp(-inside, inside).atanh()
        return self._log_prob_before(before, (before - self.mean) * (-self.log_std).exp())


def gumbel(noise: Tensor) -> Tensor:
    """Return standard Gumbel numbers, finite, from uniform ones in [0, 1], of any shape.

    The action with the largest sum of log-probability and such a number is a draw from the
    distribution (Gumbel 1954); an action of log-probability -∞ is never drawn.
    """
    return -(-noise.clamp(1e-7, 1 - 1e-7).log()).log()


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    """Return a draw of one of A actions as a one-hot vector that gradients flow through.

    Forward it is one-hot; backward it is softmax((logits + Gumbel numbers) / temperature)
    (Jang, Gu, Poole 2017, "Categorical reparameterization with Gumbel-softmax", section 2.2).

    Parameters
    ----------
    logits : (..., A)
        Unnormalised log-probabilities; -∞ for what must not be drawn.
    noise : (..., A)
        Uniform numbers in [0, 1).
    temperature : float
        Small ones make the backward path nearer to a one-hot vector, and its gradients rougher.
    """
    soft = ((logits + gumbel(noise)) / temperature).softmax(-1)
    best = soft.argmax(-1, keepdim=True)
    hard = torch.zeros_like(soft).scatter(-1, best, torch.ones_like(soft))
    return hard + (soft - soft.detach())  # exactly one-hot, which (hard - soft) + soft is not

"""What changes as training goes on, and actions that are random now and then."""

from __future__ import annotations

import torch
from torch import Tensor


def decay(start: float, end: float, steps: int, done: int) -> float:
    """Return a value that goes from ``start`` to ``end`` in a straight line over ``steps`` steps.

    Parameters
    ----------
    steps : int
        0 for the end from the beginning.
    done : int
        Steps so far.
    """
    share = min(done / steps, 1.0) if steps else 1.0
    return start + share * (end - start)


def remaining(done: int, total: int | None) -> float:
    """Return the share of ``total`` steps that is left after ``done``, from 1 down to 0.

    Annealing multiplies learning rates by it; ``total`` None is for none, a share of 1 throughout.
    """
    return 1.0 if total is None else max(1 - done / total, 0.0)


def epsilon_greedy(
    q: Tensor, noise: Tensor | None, epsilon: float, mask: Tensor | None = None
) -> Tensor:
    """Return the best actions (..., N), each agent's replaced by a random one with probability ε.

    Parameters
    ----------
    q : (..., N, A)
        Action values, -∞ where an action is illegal.
    noise : (..., 2, N) or None
        Uniform numbers in [0, 1): whether to explore, and with which action; None never explores.
    epsilon : float
    mask : (..., N, A) bool or None
        True where an action is legal; random ones are drawn among these.
    """
    best = q.argmax(-1)
    if noise is None:
        return best
    whether, which = noise.unbind(-2)
    if mask is None:
        tried = (which * q.shape[-1]).long()
    else:
        legal = mask.cumsum(-1)  # the k-th legal action is where this reaches k
        k = (which * legal[..., -1]).long() + 1
        tried = (legal >= k.unsqueeze(-1)).int().argmax(-1)
    return torch.where(whether < epsilon, tried, best)

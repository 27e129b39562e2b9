"""How learners try what they do not yet think best, and what changes as training goes on."""

from __future__ import annotations

from typing import Any

import numpy as np


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
    greedy: np.ndarray, epsilon: float, draw: np.ndarray, n_actions: int, info: dict[str, Any]
) -> np.ndarray:
    """Return actions of which each is random with probability ε, on its own.

    Parameters
    ----------
    greedy : (rows, N) int array
        What to do otherwise.
    epsilon : float
    draw : (rows, 2 N) array
        Uniform numbers in [0, 1): whether, and which.
    n_actions : int
    info : dict
        With ``action_mask`` (rows, N, A), random actions are drawn among the legal ones.

    Returns
    -------
    (rows, N) int array
    """
    whether, which = np.split(draw, 2, axis=1)
    if "action_mask" not in info:
        return np.where(whether < epsilon, (which * n_actions).astype(np.int64), greedy)
    legal = info["action_mask"].cumsum(-1)  # the k-th legal action is where this reaches k
    k = (which * legal[..., -1]).astype(np.int64) + 1
    return np.where(whether < epsilon, (legal >= k[..., None]).argmax(-1), greedy)

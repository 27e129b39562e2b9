"""Who judges the peers: the same worlds for all, at no cost to them."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

EPISODES = 100
THRESHOLD = 475.0
SEED = 1_000_003  # marl_lib.training.EVALUATION_SEED, whose import loads what no peer needs


class Judge:
    """Plays CartPole-v1 with a policy and keeps the time that this took, its import included.

    What reaches the threshold may be lucky, so it is judged again on other worlds, and that counts;
    ``marl train --stop-at`` does the same.

    Attributes
    ----------
    seconds : float
        Wall-clock time spent in judging so far, which is not the contender's.
    """

    def __init__(self) -> None:
        start = perf_counter()
        from marl_lib.envs import BatchedCartPole, TeamOfOne
        from marl_lib.rollout import play

        self._play = lambda policy, seed: play(
            TeamOfOne(BatchedCartPole(EPISODES)),
            lambda obs, info: np.asarray(policy(obs[:, 0]))[:, None],
            seed,
        ).returns.mean()
        self.seconds = perf_counter() - start

    def __call__(self, policy: Callable[[np.ndarray], np.ndarray]) -> float:
        """Return the mean return over 100 episodes of ``policy(obs (100, 4)) -> action (100,)``."""
        start = perf_counter()
        score = self._play(policy, SEED)
        if score >= THRESHOLD:
            score = self._play(policy, SEED + 1)
        self.seconds += perf_counter() - start
        return float(score)

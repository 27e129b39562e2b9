"""Playing episodes with any policy, for evaluation and for pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from marl_lib.envs.base import BatchedParallelEnv, Seeds

Policy = Callable[[np.ndarray, dict[str, Any]], np.ndarray]


@dataclass(frozen=True)
class Episodes:
    """What B episodes came to.

    Attributes
    ----------
    returns : float array (B,), undiscounted return of the team
    lengths : int array (B,)
    metrics : dict of (B,) arrays, the world's own figures at the end of each episode
    """

    returns: np.ndarray
    lengths: np.ndarray
    metrics: dict[str, np.ndarray]


def play(env: BatchedParallelEnv, policy: Policy, seed: Seeds) -> Episodes:
    """Play one episode in every environment of the batch.

    One episode each, however long it lasts: taking the first so many to finish would favour short
    ones.

    Parameters
    ----------
    env : BatchedParallelEnv
    policy : callable
        ``policy(obs (B, N, D), info) -> action (B, N)``.
    seed : int or sequence of int
        As for ``env.reset``.
    """
    obs, info = env.reset(seed=seed)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
    metrics: dict[str, np.ndarray] = {}
    live = np.ones(env.num_envs, bool)
    while live.any():
        obs, reward, terminated, truncated, info = env.step(policy(obs, info))
        returns += live * reward.sum(1)
        lengths += live
        ended = live & (terminated | truncated)
        for name, value in info.get("episode_metrics", {}).items():
            metrics.setdefault(name, np.full(env.num_envs, np.nan))[ended] = value[ended]
        live &= ~ended
    return Episodes(returns, lengths, metrics)


@dataclass(frozen=True)
class Recording:
    """One episode, step by step.

    Attributes
    ----------
    frames : list of (height, width, 3) uint8 arrays, T + 1 of them
    rewards : float array (T, N)
    actions : array (T, N)
    """

    frames: list[np.ndarray]
    rewards: np.ndarray
    actions: np.ndarray


def record(env: BatchedParallelEnv, policy: Policy, seed: Seeds) -> Recording:
    """Play an episode in environment 0 of a batch without autoreset and keep how it looked."""
    if env.autoreset:
        raise ValueError("record() needs a world made with autoreset=False")
    obs, info = env.reset(seed=seed)
    frames, rewards, actions = [env.render_rgb()], [], []
    done = False
    while not done:
        action = policy(obs, info)
        obs, reward, terminated, truncated, info = env.step(action)
        frames.append(env.render_rgb())
        rewards.append(reward[0])
        actions.append(action[0])
        done = bool(terminated[0] | truncated[0])
    return Recording(frames, np.array(rewards), np.array(actions))

"""Other shapes of world, brought to the batched protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from marl_lib.envs.base import BatchedParallelEnv, BatchedVectorEnv, Seeds, Step


class TeamOfOne(BatchedParallelEnv):
    """B single-agent environments as teams of one: adds the agent axis, N = 1.

    Parameters
    ----------
    env : BatchedVectorEnv
    """

    def __init__(self, env: BatchedVectorEnv):
        assert isinstance(env.single_action_space, spaces.Discrete | spaces.Box)
        space = env.single_observation_space
        assert isinstance(space, spaces.Box)
        obs_dim = space.shape[0]
        super().__init__(
            env.num_envs, 1, obs_dim, env.single_action_space, env.max_steps, env.autoreset
        )
        self.env = env
        self.single_observation_space = space
        self.elapsed = env.elapsed  # the same array

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes; observations are (B, 1, D)."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.streams = self.env.streams
        return obs[:, None], info

    def step(self, action: np.ndarray) -> Step:
        """Advance every row; actions (B, 1), rewards (B, 1)."""
        obs, reward, terminated, truncated, info = self.env.step(self._check_action(action)[:, 0])
        info = {**info, "final_obs": info["final_obs"][:, None]}
        return obs[:, None], reward[:, None], terminated, truncated, info

    def _start(self, rows: np.ndarray) -> None:
        self.env._start(rows)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reward, terminated = self.env._advance(action[:, 0])
        return reward[:, None], terminated

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        return self.env._observe(rows)[:, None]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped environments."""
        return self.env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the wrapped environments."""
        self.env.load_state_dict(state)
        self.streams = self.env.streams

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, (height, width, 3) uint8."""
        return self.env.render_rgb(index)

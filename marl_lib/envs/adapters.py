"""Other shapes of world, brought to the batched protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from marl_lib.config import ConfigError
from marl_lib.envs.base import BatchedParallelEnv, BatchedVectorEnv, Seeds, Step, Tokens
from marl_lib.seeding import RandomStreams


class TeamOfOne(BatchedParallelEnv):
    """B single-agent environments as teams of one: adds the agent axis, N = 1.

    Parameters
    ----------
    env : BatchedVectorEnv
    columns : sequence of int or None
        Entries of the observation that are shown, which hides the others; None shows all.
    """

    def __init__(self, env: BatchedVectorEnv, columns: Sequence[int] | None = None):
        assert isinstance(env.single_action_space, spaces.Discrete | spaces.Box)
        space = env.single_observation_space
        assert isinstance(space, spaces.Box)
        if columns is not None:
            space = spaces.Box(space.low[list(columns)], space.high[list(columns)])
        super().__init__(
            env.num_envs, 1, space.shape[0], env.single_action_space, env.max_steps, env.autoreset
        )
        self.env, self.columns = env, columns
        self.single_observation_space = space
        self.elapsed = env.elapsed  # the same array
        self.tokens = env.tokens

    def _seen(self, obs: np.ndarray) -> np.ndarray:
        """Return observations (B, D) as the agent sees them, (B, 1, D)."""
        return (obs if self.columns is None else obs[:, self.columns])[:, None]

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes; observations are (B, 1, D)."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.streams = self.env.streams
        return self._seen(obs), info

    def step(self, action: np.ndarray) -> Step:
        """Advance every row; actions (B, 1), rewards (B, 1)."""
        obs, reward, terminated, truncated, info = self.env.step(self._check_action(action)[:, 0])
        info = {**info, "final_obs": self._seen(info["final_obs"])}
        return self._seen(obs), reward[:, None], terminated, truncated, info

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        return self._seen(self.env._observe(rows))

    def scripted(self) -> np.ndarray:
        """Return the actions (B, 1) of the world's hand-written policy."""
        if not hasattr(self.env, "scripted"):
            return super().scripted()
        return np.asarray(self.env.scripted()[:, None])

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


class History(BatchedParallelEnv):
    """A world whose observation is the last K observations, oldest first.

    Where an episode is younger than K steps, the oldest places are empty: zeros with flag 0 (see
    :class:`marl_lib.envs.base.Tokens`).

    Parameters
    ----------
    env : BatchedParallelEnv
    length : int
        K, the present observation included.
    """

    def __init__(self, env: BatchedParallelEnv, length: int):
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        space = env.single_action_space
        size = length * (1 + env.obs_dim)
        super().__init__(env.num_envs, env.n_agents, size, space, env.max_steps, env.autoreset)
        self.env, self.elapsed = env, env.elapsed
        self.tokens = Tokens(length, env.obs_dim, ordered=True)
        self._kept = np.zeros((env.num_envs, env.n_agents, length, 1 + env.obs_dim), np.float32)

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes; observations are (B, N, K (1 + D))."""
        obs, info = self.env.reset(seed=seed, options=options)
        self.streams = self.env.streams
        self._kept[:] = 0.0
        self._push(obs, slice(None))
        return self._observe(slice(None)), info

    def step(self, action: np.ndarray) -> Step:
        """Advance every row."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._push(info["final_obs"], slice(None))
        final = self._observe(slice(None))
        if self.autoreset:
            rows = np.flatnonzero(terminated | truncated)
            self._kept[rows] = 0.0
            self._push(obs[rows], rows)
        info = {**info, "final_obs": final}
        return self._observe(slice(None)), reward, terminated, truncated, info

    def _push(self, obs: np.ndarray, rows: np.ndarray | slice) -> None:
        """Let the oldest observation go and append the newest."""
        self._kept[rows, :, :-1] = self._kept[rows, :, 1:]
        self._kept[rows, :, -1, 0] = 1.0
        self._kept[rows, :, -1, 1:] = obs

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        kept = self._kept[rows]
        return kept.reshape(*kept.shape[:2], -1).copy()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the world and what is remembered of it."""
        return {"env": self.env.state_dict(), "kept": self._kept.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the world that wrote ``state`` stood."""
        self.env.load_state_dict(state["env"])
        self._kept[...] = state["kept"]
        self.streams = self.env.streams

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, (height, width, 3) uint8."""
        return self.env.render_rgb(index)


class GymnasiumBatch(BatchedParallelEnv):
    """B copies of any gymnasium environment, stepped one after the other, as teams of one.

    For worlds that are not among our own, at gymnasium's speed. Their state cannot be looked into,
    so a resumed run starts its episodes anew.

    Parameters
    ----------
    spec : str or gymnasium EnvSpec
        Such as "Pendulum-v1". Observations must be a Box of one axis, actions a Box of one axis or
        Discrete.
    num_envs : int
    autoreset : bool

    Raises
    ------
    ConfigError
        If there is no such environment, or its spaces are others.
    """

    def __init__(self, spec: str | EnvSpec, num_envs: int = 1, autoreset: bool = True):
        mode = AutoresetMode.SAME_STEP if autoreset else AutoresetMode.DISABLED
        try:
            self.envs = gymnasium.make_vec(
                spec,
                num_envs,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": mode},
            )
        except gymnasium.error.Error as error:
            raise ConfigError(f"gymnasium cannot make {spec!r}: {error}") from error
        space, action = self.envs.single_observation_space, self.envs.single_action_space
        if not (isinstance(space, spaces.Box) and len(space.shape) == 1):
            raise ConfigError(f"{spec}: observations must be a Box of one axis, got {space}")
        if not (isinstance(action, spaces.Discrete) or action.shape and len(action.shape) == 1):
            raise ConfigError(f"{spec}: actions must be Discrete or a Box, got {action}")
        assert isinstance(action, spaces.Discrete | spaces.Box)
        limit = self.envs.spec.max_episode_steps if self.envs.spec else None
        super().__init__(num_envs, 1, space.shape[0], action, limit, autoreset)
        self.single_observation_space = space

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes; observations are (B, 1, D)."""
        seeds = None
        if seed is not None or self.streams is None:
            self.streams = RandomStreams(*self._blocks(seed), "world")
            seeds = (self.streams.integers(2**31, 1)[:, 0]).tolist()
        obs, _ = self.envs.reset(seed=seeds)
        return np.asarray(obs, np.float32)[:, None], {}

    def step(self, action: np.ndarray) -> Step:
        """Advance every row; actions (B, 1) or (B, 1, A), rewards (B, 1)."""
        given = self._check_action(action)[:, 0]
        obs, reward, terminated, truncated, found = self.envs.step(given)
        seen = np.asarray(obs, np.float32)
        done, final = terminated | truncated, seen
        if self.autoreset and done.any():
            final = seen.copy()
            final[done] = np.stack(list(found["final_obs"][done]))
        info = {"final_obs": final[:, None], "_final_obs": done}
        return seen[:, None], reward.astype(np.float32)[:, None], terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        """Return the random streams, all that can be kept."""
        assert self.streams is not None, "reset() first"
        return {"streams": self.streams.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the random streams and start new episodes."""
        self.streams = RandomStreams(0, self.num_envs, "world")
        self.streams.load_state_dict(state["streams"])
        self.envs.reset(seed=(self.streams.integers(2**31, 1)[:, 0]).tolist())

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Refuse: gymnasium needs to be told at its making that it is to draw."""
        raise NotImplementedError("worlds of gymnasium are not drawn here")

"""Other shapes of world, brought to the batched protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from pettingzoo import ParallelEnv

from marl_lib.config import ConfigError
from marl_lib.envs.base import BatchedParallelEnv, BatchedVectorEnv, Seeds, Step
from marl_lib.seeding import RandomStreams
from marl_lib.spec import Tokens


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
    :class:`marl_lib.spec.Tokens`).

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


class PettingZooBatch(BatchedParallelEnv):
    """B copies of a PettingZoo parallel environment, stepped one after the other.

    Agents may differ: shorter observations are filled up with zeros, and where some have fewer
    actions than others, or an environment forbids some, ``info`` has masks. An agent that has left
    sees zeros and earns nothing until the whole team is through. The state of the environments
    cannot be looked into, so a resumed run starts its episodes anew.

    Parameters
    ----------
    make : callable
        Returns one environment. Observations must be Boxes, which are flattened; actions Discrete
        for all agents, or for all a Box of one axis and the same bounds.
    num_envs : int
    autoreset : bool

    Raises
    ------
    ConfigError
        If the spaces are others.
    """

    def __init__(self, make: Callable[[], ParallelEnv], num_envs: int = 1, autoreset: bool = True):
        self.envs = [make() for _ in range(num_envs)]
        first = self.envs[0]
        self.names = list(first.possible_agents)
        seen = [first.observation_space(a) for a in self.names]
        acts = [first.action_space(a) for a in self.names]
        for a, space in zip(self.names, seen, strict=True):
            if not isinstance(space, spaces.Box):
                raise ConfigError(f"observations must be a Box, got {space} for agent {a}")
        sizes = [int(np.prod(space.shape)) for space in seen]
        self._choices = np.array([getattr(space, "n", 0) for space in acts])
        discrete = all(isinstance(space, spaces.Discrete) for space in acts)
        if discrete:
            action: spaces.Discrete | spaces.Box = spaces.Discrete(int(self._choices.max()))
        elif isinstance(acts[0], spaces.Box) and all(space == acts[0] for space in acts):
            action = acts[0]
        else:
            raise ConfigError(f"actions must be Discrete for all or one Box for all, got {acts}")
        super().__init__(num_envs, len(self.names), max(sizes), action, None, autoreset)
        self._masked = discrete and len(set(self._choices)) > 1

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes."""
        seeds: list[int | None] = [None] * self.num_envs
        if seed is not None or self.streams is None:
            self.streams = RandomStreams(*self._blocks(seed), "world")
            seeds = (self.streams.integers(2**31, 1)[:, 0]).tolist()
        found = [env.reset(seed=s) for env, s in zip(self.envs, seeds, strict=True)]
        self._masked |= any("action_mask" in i for _, infos in found for i in infos.values())
        obs = np.stack([self._obs(o) for o, _ in found])
        return obs, self._masks("action_mask", [infos for _, infos in found])

    def step(self, action: np.ndarray) -> Step:
        """Advance every environment by one step."""
        action, shape = self._check_action(action), (self.num_envs, self.n_agents)
        final = np.zeros((*shape, self.obs_dim), np.float32)
        reward = np.zeros(shape, np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        last: list[dict[Any, Any]] = []
        for b, env in enumerate(self.envs):
            given = {a: action[b, i] for i, a in enumerate(self.names) if a in env.agents}
            seen, paid, over, cut, infos = env.step(given)
            final[b] = self._obs(seen)
            reward[b] = [paid.get(a, 0.0) for a in self.names]
            if not env.agents:
                truncated[b] = any(cut.values())
                terminated[b] = not truncated[b]
            last.append(infos)
        done = terminated | truncated
        info = {"final_obs": final, "_final_obs": done, **self._masks("final_mask", last)}
        obs = final
        if self.autoreset and done.any():
            obs = final.copy()
            for b in np.flatnonzero(done).tolist():
                start, last[b] = self.envs[b].reset()
                obs[b] = self._obs(start)
        return obs, reward, terminated, truncated, info | self._masks("action_mask", last)

    def _obs(self, seen: dict[Any, np.ndarray]) -> np.ndarray:
        """Return the observations of all agents (N, D), zeros for those that have left."""
        out = np.zeros((self.n_agents, self.obs_dim), np.float32)
        for i, agent in enumerate(self.names):
            if agent in seen:
                flat = np.ravel(seen[agent])
                out[i, : len(flat)] = flat
        return out

    def _masks(self, name: str, infos: list[dict[Any, Any]]) -> dict[str, np.ndarray]:
        """Return which actions are legal, (B, N, A), if that is ever a question."""
        if not self._masked:
            return {}
        legal = np.arange(self.n_actions) < self._choices[:, None]  # (N, A)
        out = np.repeat(legal[None], self.num_envs, axis=0)
        for b, told in enumerate(infos):
            for i, agent in enumerate(self.names):
                if "action_mask" in told.get(agent, {}):
                    out[b, i, : self._choices[i]] = told[agent]["action_mask"]
        return {name: out}

    def state_dict(self) -> dict[str, Any]:
        """Return the random streams, all that can be kept."""
        assert self.streams is not None, "reset() first"
        return {"streams": self.streams.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the random streams and start new episodes."""
        self.streams = RandomStreams(0, self.num_envs, "world")
        self.streams.load_state_dict(state["streams"])
        for env, seed in zip(self.envs, self.streams.integers(2**31, 1)[:, 0], strict=True):
            env.reset(seed=int(seed))


class TupleTeam(ParallelEnv):
    """A gymnasium environment whose spaces are tuples, one entry an agent, as a PettingZoo one.

    So are, for instance, those of lbforaging. An episode ends for all agents at once.

    Parameters
    ----------
    env : gymnasium.Env
    """

    metadata: dict[str, Any] = {"name": "tuple_team"}

    def __init__(self, env: gymnasium.Env):
        if not isinstance(env.action_space, spaces.Tuple):
            raise ConfigError(f"the actions of a team are a Tuple, got {env.action_space}")
        assert isinstance(env.observation_space, spaces.Tuple)
        self.env = env
        self.possible_agents = list(range(len(env.action_space.spaces)))
        self.agents: list[int] = []
        self.observation_spaces = dict(enumerate(env.observation_space.spaces))
        self.action_spaces = dict(enumerate(env.action_space.spaces))

    def observation_space(self, agent: int) -> spaces.Space:
        """Return what an agent sees."""
        return self.observation_spaces[agent]

    def action_space(self, agent: int) -> spaces.Space:
        """Return what an agent can do."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start an episode."""
        obs, _ = self.env.reset(seed=seed, options=options)
        self.agents = list(self.possible_agents)
        return dict(enumerate(obs)), {a: {} for a in self.agents}

    def step(self, actions: dict[int, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Advance by one step."""
        joint = tuple(actions[a] for a in self.possible_agents)
        obs, reward, terminated, truncated, _ = self.env.step(joint)
        agents = self.agents
        if terminated or truncated:
            self.agents = []
        paid: Any = reward  # one for each agent, whatever gymnasium's types say
        return (
            dict(enumerate(obs)),
            {a: float(r) for a, r in zip(agents, paid, strict=True)},
            dict.fromkeys(agents, bool(terminated)),
            dict.fromkeys(agents, bool(truncated)),
            {a: {} for a in agents},
        )

    def render(self) -> Any:
        """Return what the environment draws."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

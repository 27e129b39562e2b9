"""The batched protocol: B environments, N agents, one NumPy call a step.

A world is written once, for a batch. ``BatchedWorld`` turns its rules into ``reset`` and ``step``
with same-step autoreset; ``BatchedParallelEnv`` adds the agent axis; ``PettingZooFace`` and
``GymnasiumFace`` show a batch of one as the single environment that other libraries expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from pettingzoo import ParallelEnv

from marl_lib.seeding import RandomStreams
from marl_lib.spec import Spec, Tokens

Seeds = int | Sequence[int] | None
Step = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


class BatchedWorld:
    """B copies of one world. A subclass supplies the rules, this class the life of an episode.

    The rules are four methods over rows of the batch: :meth:`_start` places new episodes,
    :meth:`_advance` applies one joint action to every row, :meth:`_observe` reads observations off
    the state, :meth:`_info` adds what a learner may want to know. Every array that makes up the
    state is listed in ``state_arrays``, which is what a checkpoint holds.

    Autoreset is same-step: when an episode ends, ``step`` returns the first observation of the next
    one, and the observation in which the old one ended stands in ``info["final_obs"]``. That entry
    is always there: on rows that did not end it is the observation itself, so
    ``next_obs = info["final_obs"]`` is what every learner stores.
    """

    state_arrays: tuple[str, ...] = ()
    tokens: Tokens | None = None  # how an observation is made of tokens, if it is

    def __init__(self, num_envs: int, max_steps: int | None, autoreset: bool = True):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1 or None, got {max_steps}")
        self.num_envs = num_envs
        self.max_steps = max_steps
        self.autoreset = autoreset
        self.elapsed = np.zeros(num_envs, np.int64)
        self.streams: RandomStreams | None = None

    def _start(self, rows: np.ndarray) -> None:
        """Place new episodes in the given rows, with random numbers from ``self.streams``."""
        raise NotImplementedError

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply one action to every row; return the reward and ``terminated`` (B,)."""
        raise NotImplementedError

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return fresh observations of the given rows as a new float32 array."""
        raise NotImplementedError

    def _info(self) -> dict[str, np.ndarray]:
        """Return extra entries for ``info``, read off the state before any reset."""
        return {}

    def _info_after_reset(self) -> dict[str, np.ndarray]:
        """Return extra entries for ``info`` that belong to the returned observation."""
        return {}

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new episode in every row.

        Parameters
        ----------
        seed : int, sequence of int or None
            With R seeds, block r of ``num_envs / R`` rows is what a batch of that size reset with
            seed r would be. ``None`` goes on with the streams of the last seed (or, the first
            time, with entropy from the operating system).
        options : ignored; part of the gymnasium signature.

        Returns
        -------
        obs : float32 array, (B, D) or (B, N, D)
        info : dict
        """
        if seed is not None or self.streams is None:
            self.streams = RandomStreams(*self._blocks(seed), "world")
        self.elapsed[:] = 0
        self._start(np.arange(self.num_envs))
        return self._observe(slice(None)), self._info_after_reset()

    def _blocks(self, seed: Seeds) -> tuple[list[int], int]:
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        seeds = list(seed) if isinstance(seed, Sequence | np.ndarray) else [seed]
        if not seeds or self.num_envs % len(seeds):
            raise ValueError(f"{self.num_envs} environments cannot be shared by {len(seeds)} seeds")
        return seeds, self.num_envs // len(seeds)

    def step(self, action: np.ndarray) -> Step:
        """Advance every row by one step.

        Returns
        -------
        obs : float32 array, the observation to act on next (after autoreset)
        reward : float32 array, (B,) or (B, N)
        terminated : bool array (B,), the world has ended; its value is zero from here
        truncated : bool array (B,), time ran out; the value goes on at ``info["final_obs"]``
        info : dict with ``final_obs``, ``_final_obs`` (B,) and the world's own entries
        """
        if self.streams is None:
            raise RuntimeError("call reset() before step()")
        reward, terminated = self._advance(self._check_action(action))
        self.elapsed += 1
        truncated = np.zeros(self.num_envs, bool)
        if self.max_steps is not None:
            truncated = self.elapsed >= self.max_steps
        obs = self._observe(slice(None))
        done = terminated | truncated
        info: dict[str, Any] = {"final_obs": obs, "_final_obs": done, **self._info()}
        if self.autoreset and done.any():
            rows = np.flatnonzero(done)
            self.elapsed[rows] = 0
            self._start(rows)
            obs = obs.copy()
            obs[rows] = self._observe(rows)
        info.update(self._info_after_reset())
        return obs, reward, terminated, truncated, info

    def _check_action(self, action: np.ndarray) -> np.ndarray:
        """Return the action as an array of the right shape, or raise ``ValueError``."""
        space = self.action_space  # type: ignore[attr-defined]
        action = np.asarray(action)
        if action.shape != space.shape:
            raise ValueError(f"action has shape {action.shape}, this batch takes {space.shape}")
        if isinstance(space, spaces.MultiDiscrete):
            high = int(space.nvec.flat[0])
            if action.dtype.kind not in "iu" or action.min() < 0 or action.max() >= high:
                raise ValueError(f"actions are integers from 0 to {high - 1}, got {action!r}")
        return action

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next steps depend on."""
        assert self.streams is not None, "reset() first"
        arrays = {name: getattr(self, name).copy() for name in ("elapsed", *self.state_arrays)}
        return {"arrays": arrays, "streams": self.streams.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the world that wrote ``state`` stood."""
        for name, value in state["arrays"].items():
            array = getattr(self, name)
            array[...] = np.asarray(value).reshape(array.shape)
        if self.streams is None:
            self.streams = RandomStreams(0, self.num_envs, "world")
        self.streams.load_state_dict(state["streams"])


class BatchedParallelEnv(BatchedWorld):
    """B environments of N agents each, stepped together.

    ``reset`` returns observations ``(B, N, D)``; ``step`` takes actions ``(B, N)`` (or
    ``(B, N, A)`` where they are continuous) and returns rewards ``(B, N)``. An episode ends for the
    whole team, so ``terminated`` and ``truncated`` are ``(B,)``. The reward of the team is always
    the sum over its agents.

    ``info`` may hold ``action_mask`` (B, N, A) bool, True where an action is legal, with
    ``final_mask``, the same for ``final_obs``; and ``episode_metrics``, a dict of (B,) arrays that
    are read where an episode ends.

    Parameters
    ----------
    num_envs, n_agents : int
    obs_dim : int
        Length D of one agent's observation.
    action_space : gymnasium space of one agent
    """

    def __init__(
        self,
        num_envs: int,
        n_agents: int,
        obs_dim: int,
        action_space: spaces.Discrete | spaces.Box,
        max_steps: int | None,
        autoreset: bool = True,
    ):
        super().__init__(num_envs, max_steps, autoreset)
        self.n_agents = n_agents
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.single_action_space = action_space
        if isinstance(action_space, spaces.Discrete):
            self.action_space: spaces.Space = spaces.MultiDiscrete(
                np.full((num_envs, n_agents), action_space.n)
            )
        else:
            shape = (num_envs, n_agents, *action_space.shape)
            self.action_space = spaces.Box(
                np.broadcast_to(action_space.low, shape),
                np.broadcast_to(action_space.high, shape),
                dtype=np.float32,
            )

    @property
    def obs_dim(self) -> int:
        """Length D of one agent's observation."""
        return self.single_observation_space.shape[0]

    @property
    def n_actions(self) -> int:
        """Number of discrete actions, A."""
        if not isinstance(self.single_action_space, spaces.Discrete):
            raise TypeError(f"{type(self).__name__} has continuous actions")
        return int(self.single_action_space.n)

    def sizes(self, info: dict[str, Any] | None = None) -> Spec:
        """Return what learners must know of this world.

        Parameters
        ----------
        info : dict or None
            As ``reset`` returned it: whether there are action masks is read off it.
        """
        space = self.single_action_space
        masks = info is not None and "action_mask" in info
        if isinstance(space, spaces.Discrete):
            n, bounds = int(space.n), None
        else:
            n, bounds = len(space.low), (space.low, space.high)
        return Spec(self.obs_dim, n, self.n_agents, bounds, self.tokens, masks)

    def state(self) -> np.ndarray:
        """Return the global state (B, S), for training with a central view."""
        return self._observe(slice(None)).reshape(self.num_envs, -1)

    def scripted(self) -> np.ndarray:
        """Return the actions (B, N[, A]) of a hand-written policy, which may see everything."""
        raise NotImplementedError(f"{type(self).__name__} has no hand-written policy")

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, (height, width, 3) uint8."""
        raise NotImplementedError(f"{type(self).__name__} has no picture")

    def render_ansi(self, index: int = 0) -> str:
        """Return a text drawing of environment ``index``."""
        raise NotImplementedError(f"{type(self).__name__} has no text drawing")


class BatchedVectorEnv(BatchedWorld, VectorEnv):
    """B environments of one agent, as a ``gymnasium.vector.VectorEnv``.

    Observations are ``(B, D)``, actions ``(B,)``, rewards ``(B,)``. ``info["final_obs"]`` is a
    dense array here (gymnasium's own is an array of objects); a row of it is the same thing.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["rgb_array"],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Box,
        action_space: spaces.Discrete | spaces.Box,
        max_steps: int | None,
        autoreset: bool = True,
    ):
        BatchedWorld.__init__(self, num_envs, max_steps, autoreset)
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = gymnasium.vector.utils.batch_space(observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(action_space, num_envs)
        if not autoreset:
            self.metadata = {**self.metadata, "autoreset_mode": AutoresetMode.DISABLED}

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, (height, width, 3) uint8."""
        raise NotImplementedError(f"{type(self).__name__} has no picture")

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing to release."""


class TeamSpaceMixin:
    """Lets one space serve a team: ``env.action_space`` is it, ``env.action_space(i)`` too."""

    def __call__(self, agent: Any) -> Any:
        """Return the space of ``agent``: the same for all."""
        return self


class TeamBox(TeamSpaceMixin, spaces.Box):
    """A Box that every agent of a team shares."""


class TeamDiscrete(TeamSpaceMixin, spaces.Discrete):
    """A Discrete space that every agent of a team shares."""


class PettingZooFace(ParallelEnv):
    """A batch of one ``BatchedParallelEnv`` as a PettingZoo parallel environment.

    Agents are named by their number, 0 to N - 1. All of them share one space, which can be had as
    an attribute (``env.action_space.n``) or, as PettingZoo asks, for an agent
    (``env.action_space(0)``).

    Parameters
    ----------
    world : BatchedParallelEnv
        With ``num_envs=1`` and ``autoreset=False``.
    render_mode : {"rgb_array", "ansi", "human", None}
        "human" prints the text drawing.
    """

    metadata: dict[str, Any] = {
        "name": "marl_lib",
        "render_modes": ["rgb_array", "ansi", "human"],
        "render_fps": 4,
        "is_parallelizable": True,
    }

    def __init__(self, world: BatchedParallelEnv, render_mode: str | None = None):
        if world.num_envs != 1 or world.autoreset:
            raise ValueError("a single environment is a batch of one without autoreset")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            choices = ", ".join(self.metadata["render_modes"])
            raise ValueError(f"render_mode {render_mode!r} is not one of {choices}")
        self.world = world
        self.render_mode = render_mode
        self.possible_agents: list[int] = list(range(world.n_agents))
        self.agents: list[int] = []
        low, high = world.single_observation_space.low, world.single_observation_space.high
        self.observation_space = TeamBox(low, high, dtype=np.float32)
        space = world.single_action_space
        self.action_space: Any = (
            TeamDiscrete(space.n)
            if isinstance(space, spaces.Discrete)
            else TeamBox(space.low, space.high, dtype=np.float32)
        )

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start an episode; return observations and infos, one entry an agent."""
        obs, info = self.world.reset(seed=seed)
        self.agents = list(self.possible_agents)
        return dict(enumerate(obs[0])), self._infos(info)

    def step(self, actions: dict[int, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Advance by one step; every live agent must have an action."""
        if not self.agents:
            raise RuntimeError("the episode is over: call reset() first")
        missing = [a for a in self.agents if a not in actions]
        if missing:
            raise ValueError(f"no action for agents {missing}")
        joint = np.array([[actions[a] for a in self.agents]])
        obs, reward, terminated, truncated, info = self.world.step(joint)
        agents = self.agents
        if terminated[0] or truncated[0]:
            self.agents = []
        return (
            dict(zip(agents, obs[0], strict=True)),
            {a: float(r) for a, r in zip(agents, reward[0], strict=True)},
            dict.fromkeys(agents, bool(terminated[0])),
            dict.fromkeys(agents, bool(truncated[0])),
            self._infos(info),
        )

    def _infos(self, info: dict[str, Any]) -> dict[int, dict[str, Any]]:
        infos: dict[int, dict[str, Any]] = {a: {} for a in self.possible_agents}
        if "action_mask" in info:
            for agent in infos:
                infos[agent]["action_mask"] = info["action_mask"][0, agent].astype(np.int8)
        return infos

    def state(self) -> np.ndarray:
        """Return the global state (S,)."""
        return self.world.state()[0]

    def render(self) -> np.ndarray | str | None:
        """Return a picture, a text drawing, or (mode "human") print the drawing."""
        if self.render_mode is not None and self.world.streams is None:
            raise RuntimeError("call reset() before render()")
        if self.render_mode == "rgb_array":
            return self.world.render_rgb()
        if self.render_mode == "ansi":
            return self.world.render_ansi()
        if self.render_mode == "human":
            print(self.world.render_ansi())
        return None

    def close(self) -> None:
        """Nothing to release."""


class GymnasiumFace(gymnasium.Env):
    """A batch of one ``BatchedVectorEnv`` as a plain gymnasium environment.

    Parameters
    ----------
    world : BatchedVectorEnv
        With ``num_envs=1`` and ``autoreset=False``.
    render_mode : {"rgb_array", None}
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, world: BatchedVectorEnv, render_mode: str | None = None):
        if world.num_envs != 1 or world.autoreset:
            raise ValueError("a single environment is a batch of one without autoreset")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode {render_mode!r} is not one of rgb_array")
        self.world = world
        self.render_mode = render_mode
        self.observation_space = world.single_observation_space
        self.action_space = world.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; return the observation (D,) and an empty info."""
        super().reset(seed=seed)
        obs, _ = self.world.reset(seed=seed, options=options)
        return obs[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one step."""
        obs, reward, terminated, truncated, _ = self.world.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Return a picture (height, width, 3) uint8 in mode rgb_array, else None."""
        return self.world.render_rgb() if self.render_mode == "rgb_array" else None

"""Worlds: batched in NumPy, each with the face of a standard single environment."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import gymnasium

from marl_lib.config import Config, ConfigError, Count, choice, convert
from marl_lib.envs.adapters import (
    GymnasiumBatch,
    History,
    PettingZooBatch,
    TeamOfOne,
    TupleTeam,
)
from marl_lib.envs.base import BatchedParallelEnv, BatchedVectorEnv
from marl_lib.envs.classic import (
    Acrobot,
    BatchedAcrobot,
    BatchedCartPole,
    BatchedMountainCar,
    CartPole,
    MountainCar,
)
from marl_lib.envs.colourmatch import BatchedColourMatch, ColourMatch, ColourMatchConfig
from marl_lib.envs.gridworld import BatchedGridWorld, GridWorldConfig, MultiAgentGridWorld
from marl_lib.envs.matrix import BatchedMatrixGame, MatrixGame, MatrixGameConfig
from marl_lib.envs.particle import (
    BatchedCooperativeNavigation,
    BatchedPredatorPrey,
    BatchedReference,
    BatchedSpeakerListener,
    CooperativeNavigation,
    CooperativeNavigationConfig,
    PredatorPrey,
    PredatorPreyConfig,
    Reference,
    ReferenceConfig,
    SpeakerListener,
    SpeakerListenerConfig,
)
from marl_lib.envs.pursuit import (
    BatchedGridPredatorPrey,
    GridPredatorPrey,
    GridPredatorPreyConfig,
)
from marl_lib.envs.robots import BatchedRobots, Robots, RobotsConfig
from marl_lib.envs.traffic import (
    BatchedTrafficJunction,
    TrafficJunction,
    TrafficJunctionConfig,
)

__all__ = [
    "ENVS",
    "Acrobot",
    "BatchedAcrobot",
    "BatchedCartPole",
    "BatchedColourMatch",
    "BatchedCooperativeNavigation",
    "BatchedGridPredatorPrey",
    "BatchedGridWorld",
    "BatchedMatrixGame",
    "BatchedMountainCar",
    "BatchedParallelEnv",
    "BatchedPredatorPrey",
    "BatchedReference",
    "BatchedRobots",
    "BatchedSpeakerListener",
    "BatchedTrafficJunction",
    "BatchedVectorEnv",
    "CartPole",
    "ClassicConfig",
    "ColourMatch",
    "ColourMatchConfig",
    "CooperativeNavigation",
    "CooperativeNavigationConfig",
    "GridPredatorPrey",
    "GridPredatorPreyConfig",
    "GridWorldConfig",
    "GymnasiumBatch",
    "History",
    "PettingZooBatch",
    "TupleTeam",
    "MatrixGame",
    "MatrixGameConfig",
    "MountainCar",
    "MultiAgentGridWorld",
    "PredatorPrey",
    "PredatorPreyConfig",
    "Reference",
    "ReferenceConfig",
    "Robots",
    "RobotsConfig",
    "SpeakerListener",
    "SpeakerListenerConfig",
    "TeamOfOne",
    "TrafficJunction",
    "TrafficJunctionConfig",
    "entry",
    "make",
]


@dataclass(frozen=True)
class ClassicConfig(Config):
    """Options of the classic control worlds.

    Parameters
    ----------
    max_steps : int or None
        Truncate after so many steps; ``None`` takes the standard (500, 500 and 200).
    velocities : bool
        Show the velocities; without them one observation does not tell the state.
    history : int
        Show the last so many observations, as tokens, where more than one.
    physics : dict of name to number or [low, high]
        Constants to change, or to draw afresh for each episode; the world itself checks them.
    """

    max_steps: Count | None = None
    velocities: bool = True
    history: Count = 1
    physics: dict[str, float | tuple[float, float]] = field(default_factory=dict)


class _Entry(NamedTuple):
    options: type
    build: Callable[[int, Any, bool], BatchedParallelEnv]


def _team(kind: Callable[..., BatchedParallelEnv], options: type) -> _Entry:
    return _Entry(options, lambda n, given, auto: kind(n, autoreset=auto, **vars(given)))


def _classic(kind: type[Any]) -> _Entry:
    def build(num_envs: int, options: ClassicConfig, autoreset: bool) -> BatchedParallelEnv:
        given = {} if options.max_steps is None else {"max_steps": options.max_steps}
        world = kind(num_envs, physics=options.physics, autoreset=autoreset, **given)
        team = TeamOfOne(world, None if options.velocities else kind.places)
        return team if options.history == 1 else History(team, options.history)

    return _Entry(ClassicConfig, build)


def _colour_match(num_envs: int, options: ColourMatchConfig, autoreset: bool) -> TeamOfOne:
    return TeamOfOne(BatchedColourMatch(num_envs, autoreset, **vars(options)))


@dataclass(frozen=True)
class OtherConfig(Config):
    """Options of a world of another package: none."""


def _gymnasium_team(name: str, num_envs: int, autoreset: bool) -> PettingZooBatch:
    return PettingZooBatch(
        lambda: TupleTeam(gymnasium.make(name, disable_env_checker=True)), num_envs, autoreset
    )


def _pettingzoo(module: str, num_envs: int, autoreset: bool) -> PettingZooBatch:
    try:
        make = importlib.import_module(module).parallel_env
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{module} is no module with a parallel_env: {error}") from error
    return PettingZooBatch(make, num_envs, autoreset)


# Before the name of any environment that gymnasium can make, of one of its whose spaces are tuples
# over agents, and of any module with a PettingZoo ``parallel_env``.
OTHERS: dict[str, Callable[[str, int, bool], BatchedParallelEnv]] = {
    "gymnasium:": GymnasiumBatch,
    "gymnasium-team:": _gymnasium_team,
    "pettingzoo:": _pettingzoo,
}

ENVS: dict[str, _Entry] = {
    "GridWorld": _team(BatchedGridWorld, GridWorldConfig),
    "CooperativeNavigation": _team(BatchedCooperativeNavigation, CooperativeNavigationConfig),
    "PredatorPrey": _team(BatchedPredatorPrey, PredatorPreyConfig),
    "SpeakerListener": _team(BatchedSpeakerListener, SpeakerListenerConfig),
    "Reference": _team(BatchedReference, ReferenceConfig),
    "TrafficJunction": _team(BatchedTrafficJunction, TrafficJunctionConfig),
    "GridPredatorPrey": _team(BatchedGridPredatorPrey, GridPredatorPreyConfig),
    "Robots": _team(BatchedRobots, RobotsConfig),
    "MatrixGame": _team(BatchedMatrixGame, MatrixGameConfig),
    "ColourMatch": _Entry(ColourMatchConfig, _colour_match),
    "CartPole-v1": _classic(BatchedCartPole),
    "Acrobot-v1": _classic(BatchedAcrobot),
    "MountainCar-v0": _classic(BatchedMountainCar),
}


def _other(
    build: Callable[[str, int, bool], BatchedParallelEnv],
    name: str,
    num_envs: int,
    _: Any,
    auto: bool,
) -> BatchedParallelEnv:
    return build(name, num_envs, auto)


def entry(name: str) -> _Entry:
    """Return how a world is made and the class of its options.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    for prefix, build in OTHERS.items():
        if isinstance(name, str) and name.startswith(prefix):
            return _Entry(OtherConfig, partial(_other, build, name.removeprefix(prefix)))
    return ENVS[choice("environment", name, [*ENVS, *(f"{prefix}NAME" for prefix in OTHERS)])]


def make(
    name: str, num_envs: int = 1, options: Any = None, autoreset: bool = True
) -> BatchedParallelEnv:
    """Return a batch of a named world, single-agent ones as teams of one.

    Parameters
    ----------
    name : str
        One of ``ENVS``; or ``gymnasium:`` and the name of an environment of gymnasium
        (``gymnasium-team:`` if its spaces are tuples over agents); or ``pettingzoo:`` and a module
        that has a ``parallel_env``, such as ``pettingzoo:mpe2.simple_spread_v3``.
    num_envs : int
    options : the world's options dataclass, a mapping of them, or None for its defaults

    Raises
    ------
    ConfigError
        If the name or an option is unknown.
    """
    made = entry(name)
    options = convert({} if options is None else options, made.options, "options")
    return made.build(num_envs, options, autoreset)

"""Worlds: batched in NumPy, each with the face of a standard single environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from marl_lib.config import choice, convert, require
from marl_lib.envs.adapters import GymnasiumBatch, History, TeamOfOne
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
class ClassicConfig:
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
        Constants to change, or to draw afresh for each episode.
    """

    max_steps: int | None = None
    velocities: bool = True
    history: int = 1
    physics: dict[str, float | tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that cannot work; the world itself checks the physics."""
        if self.max_steps is not None:
            require(self.max_steps >= 1, "max_steps", self.max_steps, "at least 1")
        require(self.history >= 1, "history", self.history, "at least 1")


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
class GymnasiumConfig:
    """Options of a world of gymnasium: none."""


GYMNASIUM = "gymnasium:"  # before the name of any environment that gymnasium can make

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


def entry(name: str) -> _Entry:
    """Return how a world is made and the class of its options.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    if isinstance(name, str) and name.startswith(GYMNASIUM):
        spec = name.removeprefix(GYMNASIUM)
        return _Entry(GymnasiumConfig, lambda n, _, autoreset: GymnasiumBatch(spec, n, autoreset))
    return ENVS[choice("environment", name, [*ENVS, f"{GYMNASIUM}NAME"])]


def make(
    name: str, num_envs: int = 1, options: Any = None, autoreset: bool = True
) -> BatchedParallelEnv:
    """Return a batch of a named world, single-agent ones as teams of one.

    Parameters
    ----------
    name : str
        One of ``ENVS``, or ``gymnasium:`` and the name of an environment of gymnasium.
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

"""Many things to see, one of them wanted: a world whose observation is a set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from marl_lib.config import Config, Count, require
from marl_lib.envs.base import BatchedVectorEnv, GymnasiumFace
from marl_lib.envs.draw import PALETTE, Canvas
from marl_lib.spec import Tokens

PAPER, INK = (250, 249, 245), PALETTE["black"]
COLOURS = [PALETTE[n] for n in ("blue", "orange", "green", "vermilion", "sky", "purple", "yellow")]
MOVES = np.array([[0.0, 1.0], [0.0, -1.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])


@dataclass(frozen=True)
class ColourMatchConfig(Config):
    """Options of the colour-match world.

    Parameters
    ----------
    entities : (least, most)
        How many entities there are, drawn anew for each episode.
    colours : int
        Colours there are, at least as many as entities: no two entities share one.
    max_steps : int
        Truncate after so many steps.
    """

    entities: tuple[int, int] = (2, 7)
    colours: int = 7
    max_steps: Count = 20

    def check(self) -> None:
        """Refuse numbers of entities and colours that do not go together."""
        super().check()
        least, most = self.entities
        require(1 <= least <= most, "entities", self.entities, "(least, most) with 1 <= least")
        rule = f"at least the most entities, {most}, and at most {len(COLOURS)}"
        require(most <= self.colours <= len(COLOURS), "colours", self.colours, rule)


class BatchedColourMatch(BatchedVectorEnv):
    """B agents, each of one colour, among coloured entities: reach the one of your own colour.

    The world is the square [-1, 1]² and a step is 0.2 long. Actions: up, down, left, right, stay.
    The reward is how much nearer a step has brought the agent to the entity of its colour, and 1
    for coming within 0.2 of it, which ends the episode. The other entities do nothing.

    An observation is a set of tokens (:class:`marl_lib.spec.Tokens`), the agent first, then a
    slot for each entity, in an order that is drawn anew with every episode. A token is (flag, 1 for
    the agent itself, x, y, colour as one-hot); positions are relative to the agent, its own to the
    middle. A slot without an entity is all zeros.

    ``info["relevant"]`` (B,) is the token that the reward hangs on, to hold attention against it;
    ``info["episode_metrics"]["found"]`` (B,) is 1 where the entity was reached.

    Parameters
    ----------
    num_envs : int
    autoreset : bool
    options : fields of :class:`ColourMatchConfig`
    """

    state_arrays = ("_agent", "_colour", "_position", "_kind", "_present", "_goal")
    step_length, reach = 0.2, 0.2

    def __init__(self, num_envs: int, autoreset: bool = True, **options: Any):
        self.config = c = ColourMatchConfig(**options)
        slots, self.n_actions = c.entities[1], len(MOVES)
        self.tokens = t = Tokens(1 + slots, 3 + c.colours, ordered=False)
        space = spaces.Box(-2.0, 2.0, (t.count * (1 + t.size),), np.float32)
        super().__init__(num_envs, space, spaces.Discrete(len(MOVES)), c.max_steps, autoreset)
        self._agent = np.zeros((num_envs, 2))
        self._colour = np.zeros(num_envs, np.int64)  # of the agent
        self._position = np.zeros((num_envs, slots, 2))
        self._kind = np.zeros((num_envs, slots), np.int64)  # colours of the entities
        self._present = np.zeros((num_envs, slots), bool)
        self._goal = np.zeros(num_envs, np.int64)  # slot of the entity to reach

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        c, n, slots = self.config, len(rows), self._kind.shape[1]
        least, most = c.entities
        # two for the agent, two for each slot, an order of slots and one of colours, a count
        number = self.streams.uniform(2 + 3 * slots + c.colours + 1, rows)
        places, order, colours, count = np.split(
            number, np.cumsum([2 + 2 * slots, slots, c.colours]), axis=1
        )
        places = (2 * places - 1).reshape(n, 1 + slots, 2)
        self._agent[rows], self._position[rows] = places[:, 0], places[:, 1:]
        self._kind[rows] = colours.argsort(1)[:, :slots]
        there = least + (count[:, 0] * (most - least + 1)).astype(np.int64)
        rank = order.argsort(1).argsort(1)  # the slot of rank 0 holds the goal
        self._present[rows] = rank < there[:, None]
        self._goal[rows] = rank.argmin(1)
        self._colour[rows] = self._kind[rows, self._goal[rows]]

    def _distance(self) -> np.ndarray:
        """Return how far the agents are from their entities, (B,)."""
        goal = self._position[np.arange(self.num_envs), self._goal]
        return np.asarray(np.linalg.norm(goal - self._agent, axis=-1))

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        before = self._distance()
        self._agent += self.step_length * MOVES[action]
        np.clip(self._agent, -1, 1, out=self._agent)
        after = self._distance()
        found = after <= self.reach
        return (before - after + found).astype(np.float32), found

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        agent, present = self._agent[rows], self._present[rows]
        n, slots = present.shape
        out = np.zeros((n, 1 + slots, 4 + self.config.colours), np.float32)
        out[:, 0, :2] = 1.0
        out[:, 0, 2:4] = agent
        out[np.arange(n), 0, 4 + self._colour[rows]] = 1.0
        out[:, 1:, 0] = present
        out[:, 1:, 2:4] = self._position[rows] - agent[:, None]
        np.put_along_axis(out[:, 1:, 4:], self._kind[rows][..., None], 1.0, axis=-1)
        out[:, 1:] *= present[..., None]
        return out.reshape(n, -1)

    def _info(self) -> dict[str, Any]:
        return {"episode_metrics": {"found": (self._distance() <= self.reach).astype(float)}}

    def _info_after_reset(self) -> dict[str, np.ndarray]:
        return {"relevant": 1 + self._goal}

    def scripted(self) -> np.ndarray:
        """Return actions (B,) that lead to the entity, along the axis that is farther first."""
        way = self._position[np.arange(self.num_envs), self._goal] - self._agent  # (B, 2)
        sideways = np.abs(way[:, 0]) > np.abs(way[:, 1])
        return np.where(sideways, np.where(way[:, 0] < 0, 2, 3), np.where(way[:, 1] < 0, 1, 0))

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, (240, 240, 3) uint8."""
        canvas = Canvas(240, 240, PAPER)

        def place(point: np.ndarray) -> tuple[float, float]:
            return 120 + 105 * float(point[0]), 120 - 105 * float(point[1])

        for slot in np.flatnonzero(self._present[index]):
            colour = COLOURS[self._kind[index, slot]]
            canvas.disc(place(self._position[index, slot]), 9, colour)
        canvas.disc(place(self._agent[index]), 13, INK)
        canvas.disc(place(self._agent[index]), 9, COLOURS[self._colour[index]])
        return canvas.image()


class ColourMatch(GymnasiumFace):
    """One :class:`BatchedColourMatch` world as a gymnasium environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : as for :class:`BatchedColourMatch`, without ``num_envs`` and ``autoreset``.
    """

    metadata = {**GymnasiumFace.metadata, "render_fps": 8}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedColourMatch(1, autoreset=False, **options), render_mode)

"""Predators that look for prey on a grid (Singh, Jain, Sukhbaatar 2019), stepped as batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium import spaces

from marl_lib.config import Config, Count, Natural, at_least, require
from marl_lib.envs.base import BatchedParallelEnv, PettingZooFace
from marl_lib.envs.draw import PALETTE, Canvas

PAPER, SEEN, LINE = (250, 249, 245), (214, 230, 240), (222, 220, 212)
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]])  # up, down, left, right, stay
COST = 0.05  # of a step away from the prey


@dataclass(frozen=True)
class GridPredatorPreyConfig(Config):
    """Options of predators and prey on a grid.

    Parameters
    ----------
    size : int
        Rows and columns; the published tasks have 5, 10 and 20.
    n_agents : int or None
        Predators; None takes half the size, rounded up (3, 5 and 10).
    max_steps : int or None
        None takes four times the size (20, 40 and 80).
    vision : int
        A predator sees the square of (2 vision + 1)² cells around it; 0 shows it only its own.
    rewards : {"mixed", "cooperative"}
        Mixed: a predator that has found the prey stays there and pays no more, and the episode ends
        when all have. Cooperative: each predator on the prey earns 0.05 for each that is there.
    """

    size: Annotated[int, at_least(2)] = 5
    n_agents: Count | None = None
    max_steps: Count | None = None
    vision: Natural = 1
    rewards: Literal["mixed", "cooperative"] = "mixed"

    def check(self) -> None:
        """Refuse more predators than have room."""
        super().check()
        most = self.size**2 - 1
        fits = self.n_agents is None or self.n_agents <= most
        require(fits, "n_agents", self.n_agents, f"at most {most}, one cell each beside the prey")


class BatchedGridPredatorPrey(BatchedParallelEnv):
    """B grids with N predators, which see little, and one prey, which does not move.

    Actions: up, down, left, right, stay. Several predators may share a cell. Each predator that is
    not on the prey is paid -0.05 a step; see ``rewards`` for the others. An observation is (on the
    prey, one-hot row, one-hot column, and for each cell of the square around it: other predators
    there, prey there, outside of the grid). ``info["episode_metrics"]["found"]`` is the share of
    the predators that are on the prey.

    Parameters
    ----------
    num_envs : int
    autoreset : bool
    options : fields of :class:`GridPredatorPreyConfig`
    """

    state_arrays = ("predators", "prey")

    def __init__(self, num_envs: int, autoreset: bool = True, **options: Any):
        self.config = c = GridPredatorPreyConfig(**options)
        n = (c.size + 1) // 2 if c.n_agents is None else c.n_agents
        limit = 4 * c.size if c.max_steps is None else c.max_steps
        self.window = (2 * c.vision + 1) ** 2
        obs_dim = 1 + 2 * c.size + 3 * self.window
        super().__init__(num_envs, n, obs_dim, spaces.Discrete(len(MOVES)), limit, autoreset)
        self.predators = np.zeros((num_envs, n, 2), np.int64)  # row and column
        self.prey = np.zeros((num_envs, 2), np.int64)
        outside = np.ones((c.size + 2 * c.vision,) * 2, np.float32)
        outside[c.vision : c.vision + c.size, c.vision : c.vision + c.size] = 0.0
        self._outside = outside

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        size, n = self.config.size, self.n_agents
        keys = self.streams.uniform(size**2, rows)  # the order of random keys is a permutation
        cells = keys.argsort(1)[:, : n + 1]
        places = np.stack(np.divmod(cells, size), axis=-1)
        self.predators[rows], self.prey[rows] = places[:, :n], places[:, n]

    def on_prey(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return which predators are on the prey, (rows, N)."""
        return np.asarray((self.predators[rows] == self.prey[rows][:, None]).all(-1))

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mixed = self.config.rewards == "mixed"
        moves = MOVES[action] * ~self.on_prey()[..., None] if mixed else MOVES[action]
        self.predators = np.clip(self.predators + moves, 0, self.config.size - 1)
        there = self.on_prey()
        if mixed:
            return np.where(there, 0.0, -COST).astype(np.float32), np.asarray(there.all(1))
        together = COST * there.sum(1, keepdims=True)
        over = np.zeros(self.num_envs, bool)
        return np.where(there, together, -COST).astype(np.float32), over

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        c, predators, prey = self.config, self.predators[rows], self.prey[rows]
        batch, n = predators.shape[:2]
        maps = np.zeros((batch, *self._outside.shape, 3), np.float32)
        maps[..., 2] = self._outside
        env = np.arange(batch)
        at = predators + c.vision
        np.add.at(maps[..., 0], (env[:, None], at[..., 0], at[..., 1]), 1.0)
        maps[env, prey[:, 0] + c.vision, prey[:, 1] + c.vision, 1] = 1.0
        around = np.arange(2 * c.vision + 1)
        down = predators[:, :, 0, None, None] + around[:, None]
        right = predators[:, :, 1, None, None] + around
        seen = maps[env[:, None, None, None], down, right]  # (batch, N, 2 v + 1, 2 v + 1, 3)
        seen[:, :, c.vision, c.vision, 0] -= 1.0  # not itself
        place = np.eye(c.size, dtype=np.float32)[predators].reshape(batch, n, -1)
        parts = [self.on_prey(rows)[..., None], place, seen.reshape(batch, n, -1)]
        return np.concatenate(parts, axis=-1).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"episode_metrics": {"found": self.on_prey().mean(1)}}

    def scripted(self) -> np.ndarray:
        """Return actions (B, N) that go straight to the prey, which no predator could know."""
        way = self.prey[:, None] - self.predators  # (B, N, 2)
        down, right = way[..., 0], way[..., 1]
        sideways = np.where(right < 0, 2, np.where(right > 0, 3, 4))
        return np.where(down < 0, 0, np.where(down > 0, 1, sideways))

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``; what is seen by any predator is shaded."""
        c = self.config
        cell = max(280 // c.size, 10)
        canvas = Canvas(c.size * cell, c.size * cell, PAPER)
        for row, column in self.predators[index]:
            corner = (column - c.vision) * cell, (row - c.vision) * cell
            side = (2 * c.vision + 1) * cell
            canvas.rectangle(corner, side, side, SEEN)
        for k in range(1, c.size):
            canvas.line((0, k * cell), (c.size * cell, k * cell), 1, LINE)
            canvas.line((k * cell, 0), (k * cell, c.size * cell), 1, LINE)
        row, column = self.prey[index]
        corner = (column + 0.15) * cell, (row + 0.15) * cell
        canvas.rectangle(corner, 0.7 * cell, 0.7 * cell, PALETTE["vermilion"])
        for i, (row, column) in enumerate(self.predators[index]):
            centre = (column + 0.5) * cell, (row + 0.5) * cell
            canvas.disc(centre, 0.33 * cell, PALETTE["blue"])
            canvas.text(centre, str(i)[-1], 0.36 * cell, PAPER)
        return canvas.image()


class GridPredatorPrey(PettingZooFace):
    """One :class:`BatchedGridPredatorPrey` as a PettingZoo parallel environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : fields of :class:`GridPredatorPreyConfig`
    """

    metadata = {**PettingZooFace.metadata, "name": "grid_predator_prey"}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedGridPredatorPrey(1, False, **options), render_mode)

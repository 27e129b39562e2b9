"""The traffic junction (Sukhbaatar, Szlam, Fergus 2016), stepped as batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from marl_lib.config import Config, Natural, Share
from marl_lib.envs.base import BatchedParallelEnv, PettingZooFace
from marl_lib.envs.draw import PALETTE, Canvas

GRASS, ROAD, WHITE = (226, 232, 214), (120, 120, 124), (250, 250, 250)
CARS = [PALETTE[name] for name in ("blue", "orange", "sky", "yellow", "purple", "green")]
GO, BRAKE = 0, 1


@dataclass(frozen=True)
class Level:
    """A road map: lanes are rows and columns of a grid with the way they run, and how busy it is.

    Parameters
    ----------
    size, n_agents, max_steps : int
    rate : float
        Chance of an arrival at each entry and step.
    rows, columns : tuples of (index, +1 or -1)
        +1 runs to the right or downwards.
    turns : bool
        Cars may turn into a lane that they cross.
    """

    size: int
    n_agents: int
    max_steps: int
    rate: float
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    turns: bool = True


LEVELS = {
    "easy": Level(7, 5, 20, 0.3, ((3, 1),), ((3, 1),), turns=False),
    "medium": Level(14, 10, 40, 0.2, ((6, -1), (7, 1)), ((6, 1), (7, -1))),
    "hard": Level(
        18,
        20,
        80,
        0.05,
        ((4, -1), (5, 1), (12, -1), (13, 1)),
        ((4, 1), (5, -1), (12, 1), (13, -1)),
    ),
}


@dataclass(frozen=True)
class TrafficJunctionConfig(Config):
    """Options of the traffic junction.

    Parameters
    ----------
    level : {"easy", "medium", "hard"}
        One crossing of two one-way roads (7 × 7, 5 cars, 20 steps), of two roads with two lanes
        (14 × 14, 10, 40), or four such crossings (18 × 18, 20, 80).
    vision : int
        A car sees the square of (2 vision + 1)² cells around it; 0 shows it only its own.
    rate : float or None
        Chance of an arrival at each entry and step; None takes that of the level.
    """

    level: Literal["easy", "medium", "hard"] = "easy"
    vision: Natural = 1
    rate: Share | None = None


def routes(level: Level) -> list[list[list[tuple[int, int]]]]:
    """Return for each entry the shortest ways to all exits but the one beside it.

    Returns
    -------
    list over entries of lists over exits of cells (row, column)
    """
    last = level.size - 1
    ways = [((r, 0 if d > 0 else last), (0, d)) for r, d in level.rows]
    ways += [((0 if d > 0 else last, c), (d, 0)) for c, d in level.columns]
    return [_ways_from(level, entry, heading) for entry, heading in ways]


def _ways_from(
    level: Level, entry: tuple[int, int], heading: tuple[int, int]
) -> list[list[tuple[int, int]]]:
    """Search breadth first over cells and headings; a crossing lane may be turned into."""
    rows, columns = dict(level.rows), dict(level.columns)
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    frontier, seen = [([entry], heading)], {(entry, heading)}
    while frontier:
        path, (down, right) = frontier.pop(0)
        cell = path[-1]
        lanes = [(0, rows[cell[0]])] if cell[0] in rows else []
        lanes += [(columns[cell[1]], 0)] if cell[1] in columns else []
        if not level.turns:
            lanes = [(down, right)]
        for way in sorted(lanes, key=lambda lane: lane != (down, right)):  # straight on first
            after = (cell[0] + way[0], cell[1] + way[1])
            if not (0 <= after[0] < level.size and 0 <= after[1] < level.size):
                beside = abs(cell[0] - entry[0]) + abs(cell[1] - entry[1]) == 1
                if len(path) > 1 and not beside:
                    found.setdefault(cell, path)
            elif (after, way) not in seen:
                seen.add((after, way))
                frontier.append(([*path, after], way))
    return list(found.values())


class BatchedTrafficJunction(BatchedParallelEnv):
    """B junctions with N cars each, which drive along given routes and must not meet in a cell.

    At each step a car drives on by one cell (action 0) or brakes (1). Cars arrive at the entries by
    chance, if a slot and the entry cell are free, and take a route at random; at its end they leave
    and their slot can be used again. Each car on the road is paid -10 while another is in its cell
    and -0.01 × the number of steps it has been on the road. Slots without a car act in vain.

    An observation is (on the road, last action, row, column, one-hot of the route, cars in each
    cell of the square around it), zeros where there is no car. ``info["episode_metrics"]`` has
    ``success``, 1 if no two cars have met in the episode, and ``arrived``, how many went through.

    Parameters
    ----------
    num_envs : int
    autoreset : bool
    options : fields of :class:`TrafficJunctionConfig`

    Notes
    -----
    Level sizes, rewards and rates are those of A. Singh, T. Jain, S. Sukhbaatar, "Learning when to
    communicate at scale in multiagent cooperative and competitive tasks", 2019. There a car may
    arrive in a cell that is taken, a collision that nobody can prevent; here it does not.
    """

    state_arrays = ("_route", "_place", "_wait", "_braked", "_met", "_arrived")

    def __init__(self, num_envs: int, autoreset: bool = True, **options: Any):
        self.config = c = TrafficJunctionConfig(**options)
        self.level = level = LEVELS[c.level]
        self.rate = level.rate if c.rate is None else c.rate
        by_entry = routes(level)
        every = [way for ways in by_entry for way in ways]
        self._choices = len(by_entry[0])  # routes of each entry
        self._length = np.array([len(way) for way in every])
        self._cells = np.full((len(every), self._length.max() + 1), -1)  # of each route
        for row, way in zip(self._cells, every, strict=True):
            row[: len(way)] = [r * level.size + col for r, col in way]
        self.window = (2 * c.vision + 1) ** 2
        obs_dim = 4 + len(every) + self.window
        n = level.n_agents
        super().__init__(num_envs, n, obs_dim, spaces.Discrete(2), level.max_steps, autoreset)
        self._route = np.zeros((num_envs, n), np.int64)
        self._place = np.full((num_envs, n), -1)  # how far along the route, -1 for no car
        self._wait = np.zeros((num_envs, n), np.int64)
        self._braked = np.zeros((num_envs, n), np.int64)
        self._met = np.zeros(num_envs, bool)
        self._arrived = np.zeros(num_envs, np.int64)

    def _start(self, rows: np.ndarray) -> None:
        self._place[rows] = -1
        for array in (self._route, self._wait, self._braked, self._met, self._arrived):
            array[rows] = 0
        self._arrive(rows)

    def _where(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the cell of every car, -1 for none, (rows, N)."""
        place = self._place[rows]
        return np.where(place >= 0, self._cells[self._route[rows], place], -1)

    def _arrive(self, rows: np.ndarray) -> None:
        """Let new cars in at each entry."""
        assert self.streams is not None
        entries, n = len(self._length) // self._choices, self.n_agents
        draw = self.streams.uniform(entries * (2 + n), rows).reshape(len(rows), entries, 2 + n)
        for entry in range(entries):
            route = entry * self._choices + (draw[:, entry, 1] * self._choices).astype(np.int64)
            free = self._place[rows] < 0
            taken = (self._where(rows) == self._cells[route, 0][:, None]).any(1)
            comes = (draw[:, entry, 0] < self.rate) & free.any(1) & ~taken
            slot = np.where(free, draw[:, entry, 2:], -1.0).argmax(1)  # a free one at random
            at = rows[comes], slot[comes]
            self._route[at], self._place[at] = route[comes], 0
            self._wait[at] = self._braked[at] = 0

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there = self._place >= 0
        self._wait += there
        self._braked[:] = there & (action == BRAKE)
        self._place += there & (action == GO)
        through = there & (self._place == self._length[self._route])
        self._place[through] = -1
        self._arrived += through.sum(1)
        self._arrive(np.arange(self.num_envs))
        there = self._place >= 0
        meets = there & (self._shared() > 1)
        self._met |= meets.any(1)
        reward = np.where(there, -0.01 * self._wait - 10.0 * meets, 0.0)
        return reward.astype(np.float32), np.zeros(self.num_envs, bool)

    def _traffic(self, cells: np.ndarray) -> np.ndarray:
        """Return how many cars are in each cell, (rows, size²)."""
        rows, size = len(cells), self.level.size**2
        row, car = np.nonzero(cells >= 0)
        return np.bincount(row * size + cells[row, car], minlength=rows * size).reshape(rows, -1)

    def _shared(self) -> np.ndarray:
        """Return how many cars are in the cell of each car, itself included, (B, N)."""
        cells = self._where()
        return np.take_along_axis(self._traffic(cells), np.maximum(cells, 0), axis=1)

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        cells, size, v = self._where(rows), self.level.size, self.config.vision
        there = cells >= 0
        out = np.zeros((*cells.shape, self.obs_dim), np.float32)
        out[..., 0], out[..., 1] = 1.0, self._braked[rows]
        row, column = np.divmod(np.maximum(cells, 0), size)
        out[..., 2], out[..., 3] = row / (size - 1), column / (size - 1)
        np.put_along_axis(out, 4 + self._route[rows][..., None], 1.0, axis=-1)
        padded = np.pad(self._traffic(cells).reshape(-1, size, size), ((0, 0), (v, v), (v, v)))
        around = np.arange(2 * v + 1)
        env = np.arange(len(cells))[:, None, None, None]
        square = padded[
            env,
            row[..., None, None] + around[:, None],
            column[..., None, None] + around,
        ]  # (rows, N, 2 v + 1, 2 v + 1)
        out[..., -self.window :] = square.reshape(*cells.shape, -1)
        out *= there[..., None]
        return out

    def _info(self) -> dict[str, Any]:
        figures = {"success": 1.0 - self._met, "arrived": self._arrived.astype(float)}
        return {"episode_metrics": figures}

    def scripted(self) -> np.ndarray:
        """Return the actions (B, N) of a traffic warden who sees all.

        Cars are told in turns, those that are nearest to their end first: drive on if the next cell
        is free of cars that have not left it and has not been promised to another.
        """
        envs = np.arange(self.num_envs)
        there = self._place >= 0
        left = np.where(there, self._length[self._route] - self._place, np.iinfo(np.int64).max)
        taken = self._traffic(self._where()) > 0
        action = np.full(self._place.shape, BRAKE)
        for car in left.argsort(1, kind="stable").T:  # (B,): one car of each environment
            on = there[envs, car]
            route, place = self._route[envs, car], np.maximum(self._place[envs, car], 0)
            here, after = self._cells[route, place], self._cells[route, place + 1]
            goes = on & ((after < 0) | ~taken[envs, after])
            action[envs[goes], car[goes]] = GO
            taken[envs[goes], here[goes]] = False
            enters = goes & (after >= 0)
            taken[envs[enters], after[enters]] = True
        return action

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``; cars that share a cell have a red rim."""
        size = self.level.size
        cell = 280 // size
        canvas = Canvas(size * cell, size * cell, GRASS)
        for r, _ in self.level.rows:
            canvas.rectangle((0, r * cell), size * cell, cell, ROAD)
        for c, _ in self.level.columns:
            canvas.rectangle((c * cell, 0), cell, size * cell, ROAD)
        meets = self._shared()[index] > 1
        for car, where in enumerate(self._where(slice(index, index + 1))[0]):
            if where >= 0:
                centre = ((where % size + 0.5) * cell, (where // size + 0.5) * cell)
                rim = PALETTE["vermilion"] if meets[car] else WHITE
                canvas.disc(centre, 0.44 * cell, rim)
                canvas.disc(centre, 0.34 * cell, CARS[car % len(CARS)])
        return canvas.image()


class TrafficJunction(PettingZooFace):
    """One :class:`BatchedTrafficJunction` as a PettingZoo parallel environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : fields of :class:`TrafficJunctionConfig`
    """

    metadata = {**PettingZooFace.metadata, "name": "traffic_junction"}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedTrafficJunction(1, False, **options), render_mode)

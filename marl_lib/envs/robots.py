"""Robots that drive to targets of their own between obstacles, stepped as batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from gymnasium import spaces

from marl_lib.config import Config, Count, Finite, at_least, require
from marl_lib.envs.base import BatchedParallelEnv, PettingZooFace
from marl_lib.envs.draw import PALETTE, Canvas

PAPER, STONE, LINE = (250, 249, 245), (120, 120, 124), (222, 220, 212)
COLOURS = [PALETTE[name] for name in ("blue", "orange", "green", "purple", "sky", "vermilion")]
AHEAD = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # facing up, right, down, left
FORWARD, LEFT, RIGHT, STAY = range(4)
TURN = np.array([0, -1, 1, 0])


@dataclass(frozen=True)
class RobotsConfig(Config):
    """Options of the robots.

    Parameters
    ----------
    size : int
        Rows and columns.
    n_agents : int
        Robots, each with a target of its own.
    n_obstacles : int
        Cells that nobody can enter, drawn anew for each episode among those with odd row and
        column, so that they never wall anything in.
    view : int
        Robots see obstacles up to so many cells away, in a square.
    max_steps : int
    target_reward, bump_penalty, step_penalty : float
        For arriving, once; for driving against something; for each step before arrival.
    """

    size: Annotated[int, at_least(3)] = 7
    n_agents: Count = 2
    n_obstacles: int = 5
    view: Count = 2
    max_steps: Count = 50
    target_reward: Finite = 10.0
    bump_penalty: Finite = -0.2
    step_penalty: Finite = -0.05

    def check(self) -> None:
        """Refuse more obstacles or robots than have room."""
        super().check()
        places = (self.size // 2) ** 2
        rule = f"from 0 to {places}, the cells with odd row and column"
        require(0 <= self.n_obstacles <= places, "n_obstacles", self.n_obstacles, rule)
        free = self.size**2 - self.n_obstacles
        require(2 * self.n_agents <= free, "n_agents", self.n_agents, f"at most {free // 2}")


class BatchedRobots(BatchedParallelEnv):
    """B floors with N robots that drive forward, turn left, turn right or stay.

    A robot that drives against the border, an obstacle or another robot stays where it is and pays
    for it; where two want the same cell, or each other's, neither gets it. A robot that has arrived
    stands still. The episode ends when all have.

    An observation is (arrived, heading as one-hot, row, column, target ahead, target to the right,
    for each other robot its offset ahead and to the right and its heading relative to one's own as
    one-hot, and for each cell of the square around it whether it is blocked by obstacle or border),
    all as the robot sees it from its seat; offsets as fractions of the size.

    Parameters
    ----------
    num_envs : int
    autoreset : bool
    options : fields of :class:`RobotsConfig`
    """

    state_arrays = ("position", "heading", "target", "blocked", "arrived")

    def __init__(self, num_envs: int, autoreset: bool = True, **options: Any):
        self.config = c = RobotsConfig(**options)
        n, window = c.n_agents, (2 * c.view + 1) ** 2
        obs_dim = 9 + 6 * (n - 1) + window
        super().__init__(num_envs, n, obs_dim, spaces.Discrete(4), c.max_steps, autoreset)
        self._others = (np.arange(n)[:, None] + np.arange(1, n)) % n  # (N, N - 1)
        side = c.size + 2 * c.view
        self.position = np.zeros((num_envs, n, 2), np.int64)  # row and column
        self.heading = np.zeros((num_envs, n), np.int64)
        self.target = np.zeros((num_envs, n, 2), np.int64)
        self.blocked = np.ones((num_envs, side, side), bool)  # with a border as wide as the view
        self.arrived = np.zeros((num_envs, n), bool)
        self._rotated = self._windows()
        odd = np.arange(1, c.size - c.size % 2, 2)
        self._sites = np.stack(np.meshgrid(odd, odd, indexing="ij"), -1).reshape(-1, 2)

    def _windows(self) -> np.ndarray:
        """Return for each heading the offsets (row, column) of the square, first row ahead."""
        v = self.config.view
        ahead, right = np.meshgrid(np.arange(v, -v - 1, -1), np.arange(-v, v + 1), indexing="ij")
        sideways = AHEAD[(np.arange(4) + 1) % 4]
        offset = (
            ahead[..., None] * AHEAD[:, None, None] + right[..., None] * sideways[:, None, None]
        )
        return np.asarray(offset)  # (4, 2 v + 1, 2 v + 1, 2)

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        c, n, count = self.config, self.n_agents, len(rows)
        draw = self.streams.uniform(len(self._sites) + c.size**2 + n, rows)
        sites, cells, turns = np.split(draw, [len(self._sites), -n], axis=1)
        walls = self._sites[sites.argsort(1)[:, : c.n_obstacles]]  # (rows, obstacles, 2)
        inside = slice(c.view, c.view + c.size)
        floor = np.zeros((count, c.size, c.size), bool)
        floor[np.arange(count)[:, None], walls[..., 0], walls[..., 1]] = True
        self.blocked[rows, inside, inside] = floor
        cells = np.where(floor.reshape(count, -1), 2.0, cells)  # the blocked ones come last
        places = np.stack(np.divmod(cells.argsort(1)[:, : 2 * n], c.size), axis=-1)
        self.position[rows], self.target[rows] = places[:, :n], places[:, n:]
        self.heading[rows] = (4 * turns).astype(np.int64)
        self.arrived[rows] = False

    def _is_blocked(self, place: np.ndarray) -> np.ndarray:
        """Return whether places (B, ..., 2) are obstacles or beyond the border."""
        at = place + self.config.view
        env = np.arange(self.num_envs).reshape(-1, *[1] * (place.ndim - 2))
        return self.blocked[env, at[..., 0], at[..., 1]]

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c, before = self.config, self.position
        drives = (action == FORWARD) & ~self.arrived
        self.heading = np.where(self.arrived, self.heading, (self.heading + TURN[action]) % 4)
        wanted = before + AHEAD[self.heading] * drives[..., None]
        stays = drives & self._is_blocked(wanted)
        swap = _same(wanted, before) & _same(wanted, before).swapaxes(1, 2)
        swap &= ~np.eye(self.n_agents, dtype=bool)
        stays |= drives & swap.any(2)
        for _ in range(self.n_agents):  # who stays may stop the one behind it
            place = np.where(stays[..., None], before, wanted)
            meets = _same(place, place).sum(2) > 1
            if not (meets & drives & ~stays).any():
                break
            stays |= meets & drives
        self.position = np.where(stays[..., None], before, wanted)
        late = ~self.arrived
        at = (self.position == self.target).all(-1)
        reward = c.step_penalty * late + c.bump_penalty * stays + c.target_reward * (at & late)
        self.arrived = self.arrived | at
        return reward.astype(np.float32), np.asarray(self.arrived.all(1))

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        c, n = self.config, self.n_agents
        place, heading = self.position[rows], self.heading[rows]
        batch = len(place)
        env = np.arange(batch)[:, None]
        ahead = AHEAD[heading]  # (batch, N, 2)
        right = AHEAD[(heading + 1) % 4]
        target = self.target[rows] - place
        mates, ways = place[:, self._others] - place[:, :, None], heading[:, self._others]
        mate = np.concatenate(
            [
                (mates * ahead[:, :, None]).sum(-1, keepdims=True) / c.size,
                (mates * right[:, :, None]).sum(-1, keepdims=True) / c.size,
                np.eye(4)[(ways - heading[..., None]) % 4],
            ],
            axis=-1,
        )
        look = place[:, :, None, None] + c.view + self._rotated[heading]  # (batch, N, w, w, 2)
        walls = self.blocked[rows][env[..., None, None], look[..., 0], look[..., 1]]
        parts = [
            self.arrived[rows][..., None],
            np.eye(4)[heading],
            place / (c.size - 1),
            (target * ahead).sum(-1, keepdims=True) / c.size,
            (target * right).sum(-1, keepdims=True) / c.size,
            mate.reshape(batch, n, -1),
            walls.reshape(batch, n, -1),
        ]
        return np.concatenate(parts, axis=-1).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"episode_metrics": {"arrived": self.arrived.mean(1)}}

    def scripted(self) -> np.ndarray:
        """Return actions (B, N) along shortest drives, turns counted.

        A robot drives around those that have arrived and those with a smaller number, which so have
        the right of way.
        """
        distance, env, robot = self._drives(), *np.ogrid[: self.num_envs, : self.n_agents]
        action = np.full(self.heading.shape, STAY)
        best = np.full(self.heading.shape, np.inf)
        for k in (FORWARD, LEFT, RIGHT):
            heading = (self.heading + TURN[k]) % 4
            place = 1 + self.position + AHEAD[heading] * (k == FORWARD)
            far = distance[env, robot, place[..., 0], place[..., 1], heading]
            action, best = np.where(far < best, k, action), np.minimum(far, best)
        wanted = self.position + AHEAD[self.heading] * (action == FORWARD)[..., None]
        gives_way = np.tril(_same(wanted, wanted), -1).any(2)  # both would get nowhere
        return np.where(gives_way & (action == FORWARD), STAY, action)

    def _drives(self) -> np.ndarray:
        """Return the number of actions to the target, (B, N, size + 2, size + 2, 4), inf in walls.

        The border has one row more on each side. Bellman's equation, swept until nothing changes.
        """
        c, n = self.config, self.n_agents
        env, robot, mate = np.ogrid[: self.num_envs, :n, :n]
        inside = slice(c.view - 1, c.view + c.size + 1)
        walls = np.repeat(self.blocked[:, None, inside, inside], n, axis=1)
        first = (self.arrived[:, None] | (mate < robot)) & (mate != robot)  # has the right of way
        row, column = np.moveaxis(1 + self.position[:, None], -1, 0)
        walls[env, robot, row, column] |= first
        far = np.full((*walls.shape, 4), np.inf)
        goal = 1 + self.target
        far[env[..., 0], robot[..., 0], goal[..., 0], goal[..., 1]] = 0.0
        while True:
            turned = np.minimum(np.roll(far, 1, axis=-1), np.roll(far, -1, axis=-1))
            driven = [np.roll(far[..., k], -AHEAD[k], axis=(2, 3)) for k in range(4)]
            shorter = np.minimum(far, 1 + np.minimum(turned, np.stack(driven, axis=-1)))
            shorter[walls] = np.inf
            if np.array_equal(shorter, far):
                return shorter
            far = shorter

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``; a robot's target is a ring of its colour."""
        c = self.config
        cell = max(280 // c.size, 12)
        canvas = Canvas(c.size * cell, c.size * cell, PAPER)
        for k in range(1, c.size):
            canvas.line((0, k * cell), (c.size * cell, k * cell), 1, LINE)
            canvas.line((k * cell, 0), (k * cell, c.size * cell), 1, LINE)
        inside = slice(c.view, c.view + c.size)
        for row, column in np.argwhere(self.blocked[index, inside, inside]):
            canvas.rectangle((column * cell, row * cell), cell, cell, STONE)
        for i, (row, column) in enumerate(self.target[index]):
            centre = (column + 0.5) * cell, (row + 0.5) * cell
            canvas.disc(centre, 0.42 * cell, COLOURS[i % len(COLOURS)])
            canvas.disc(centre, 0.30 * cell, PAPER)
        for i, (row, column) in enumerate(self.position[index]):
            middle = np.array([(column + 0.5) * cell, (row + 0.5) * cell])
            ahead = AHEAD[self.heading[index, i], ::-1] * cell  # x and y
            side = ahead[::-1] * [1, -1]
            tip, tail = middle + 0.4 * ahead, middle - 0.32 * ahead
            corners = [tip, tail + 0.3 * side, tail - 0.3 * side]
            canvas.polygon(corners, COLOURS[i % len(COLOURS)])
        return canvas.image()


def _same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return which places are the same, (B, N, 2) and (B, N, 2) -> (B, N, N)."""
    return np.asarray((a[:, :, None] == b[:, None]).all(-1))


class Robots(PettingZooFace):
    """One :class:`BatchedRobots` as a PettingZoo parallel environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : fields of :class:`RobotsConfig`
    """

    metadata = {**PettingZooFace.metadata, "name": "robots"}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedRobots(1, False, **options), render_mode)

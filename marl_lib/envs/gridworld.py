"""A grid in which a team collects targets: the world that most chapters use.

Agents move at the same time, one cell up, down, left or right, or stay. A wall or the border stops
them; other agents do not, but sharing a cell costs. A target pays once, to the agents that stand on
it. Positions are (row, column).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from gymnasium import spaces

from marl_lib.config import (
    Config,
    ConfigError,
    Count,
    Finite,
    Natural,
    Rule,
    from_mapping,
    require,
)
from marl_lib.envs.base import BatchedParallelEnv, PettingZooFace
from marl_lib.envs.draw import Canvas

ACTIONS = ("up", "down", "left", "right", "stay")
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)])  # (A, 2): row, column

FOUR_ROOMS = "four_rooms"

# Okabe and Ito's palette: told apart by the colour-blind, and in grey by the number on each agent.
AGENT_COLOURS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 140, 100),
    (170, 80, 140),
    (120, 94, 0),
    (60, 60, 60),
)
PAPER, GRID_LINE, WALL = (250, 250, 247), (222, 222, 216), (84, 88, 96)
TARGET, GOAL = (230, 159, 0), (180, 215, 235)


@dataclass(frozen=True)
class GridWorldConfig(Config):
    """Options of the grid world.

    Parameters
    ----------
    grid_size : (rows, columns)
    n_agents, n_targets, n_goals : int
        A goal is an exit: it pays each agent once, on first arrival, and does not vanish.
    max_steps : int
        An episode is truncated at exactly this many steps.
    reward_scale : float
        Multiplies every reward.
    collision_penalty : float
        Paid by an agent for each other agent in its cell, every step.
    target_reward : float
        Paid for a target; agents that arrive together share it equally.
    goal_reward : float
        Paid to an agent when it first stands on a goal.
    step_penalty : float
        Paid by every agent every step.
    targets : {"shared", "assigned", "hidden"}
        "shared": any agent collects any target. "assigned": target k is for agent k alone.
        "hidden": assigned, and agent k cannot see its target; agent k + 1 can. Only what a team
        mate says can then lead an agent to its target.
    view_radius : int or None
        An agent sees what is at most this many rows and columns away; ``None`` sees everything.
    shared_reward : bool
        Every agent receives the team's reward divided by N, in place of its own.
    sparse_reward : bool
        Targets and goals pay nothing until the task is done; then the team gets it all at once,
        in equal parts.
    walls : tuple of str, "four_rooms" or None
        One string a row, ``#`` for a wall and ``.`` for a free cell.
    action_masks : bool
        Report moves into walls as illegal in ``info["action_mask"]``.
    """

    grid_size: Annotated[tuple[int, int], Rule("at least 1 by 1", lambda s: min(s) >= 1)] = (10, 10)
    n_agents: Count = 2
    n_targets: Natural = 3
    n_goals: Natural = 0
    max_steps: Count = 100
    reward_scale: Finite = 1.0
    collision_penalty: Finite = -0.1
    target_reward: Finite = 10.0
    goal_reward: Finite = 10.0
    step_penalty: Finite = -0.01
    targets: Literal["shared", "assigned", "hidden"] = "shared"
    view_radius: Count | None = None
    shared_reward: bool = False
    sparse_reward: bool = False
    walls: tuple[str, ...] | Literal["four_rooms"] | None = None
    action_masks: bool = False

    def check(self) -> None:
        """Refuse worlds that cannot be played."""
        super().check()
        require(self.n_targets + self.n_goals > 0, "n_targets", 0, "at least 1 without goals")
        if self.targets != "shared":
            rule = f"n_agents ({self.n_agents}) when targets are {self.targets}"
            require(self.n_targets == self.n_agents, "n_targets", self.n_targets, rule)
        if self.targets == "hidden":
            require(self.n_agents > 1, "n_agents", self.n_agents, "at least 2 for hidden targets")


def wall_grid(config: GridWorldConfig) -> np.ndarray:
    """Return the walls of a configuration as a bool array (rows, columns).

    Raises
    ------
    ConfigError
        If the drawing has the wrong size or characters, or cuts the grid in parts.
    """
    rows, cols = config.grid_size
    grid = np.zeros((rows, cols), bool)
    if config.walls == FOUR_ROOMS:
        require(min(rows, cols) >= 5, "grid_size", config.grid_size, "at least 5 by 5 for rooms")
        grid[rows // 2, :] = grid[:, cols // 2] = True
        for r, c in ((rows // 4, cols // 2), (rows - 1 - rows // 4, cols // 2)):
            grid[r, c] = False
        for r, c in ((rows // 2, cols // 4), (rows // 2, cols - 1 - cols // 4)):
            grid[r, c] = False
    elif config.walls is not None:
        lines = config.walls
        if len(lines) != rows or any(len(line) != cols or set(line) - set("#.") for line in lines):
            raise ConfigError(f"walls must be {rows} strings of {cols} characters # or .: {lines}")
        grid = np.array([[char == "#" for char in line] for line in lines])
    if grid.any():
        from scipy.ndimage import label  # slow to load, and an open grid has no use for it

        parts = label(~grid)[1]
        require(parts == 1, "walls", config.walls, "such that every free cell can be reached")
    needed = config.n_agents + config.n_targets + config.n_goals
    free = int((~grid).sum())
    require(needed <= free, "n_agents + n_targets + n_goals", needed, f"at most {free}, the cells")
    return grid


class BatchedGridWorld(BatchedParallelEnv):
    """B grid worlds stepped together; the options are those of :class:`GridWorldConfig`.

    An observation is a row of entities seen from the agent (``obs_layout`` gives the slices):

    - ``self``: own row and column, each scaled to [0, 1]; with goals, also whether it reached one;
    - ``agents``: for each team mate, in the order i + 1, i + 2, … (mod N): 1 if seen, and the row
      and column offset to it, as fractions of the grid's height and width; with goals, also whether
      it reached one;
    - ``targets``: seen and offset of each target; a collected one is all zeros. Assigned targets
      come in the order of their owners, own first;
    - ``goals``: seen and offset of each goal;
    - ``walls``: with walls or a view radius, the cells around the agent, 1 for wall or border.

    What lies outside the view, or is hidden, is all zeros. The state of a fully observable world
    without walls is determined by any agent's observation, so it is Markov (the clock is left out:
    time running out is a truncation, not an end).
    """

    state_arrays = ("agents", "targets", "collected", "goals", "reached")

    def __init__(self, num_envs: int = 1, *, autoreset: bool = True, **options: Any):
        self.config = c = from_mapping(GridWorldConfig, options)
        self.wall_grid = wall_grid(c)
        self._pad = c.view_radius or 1
        self._index_cells()
        self._others = (np.arange(c.n_agents)[:, None] + np.arange(1, c.n_agents)) % c.n_agents
        self.obs_layout, obs_dim = self._layout()
        super().__init__(
            num_envs, c.n_agents, obs_dim, spaces.Discrete(len(ACTIONS)), c.max_steps, autoreset
        )
        self.single_observation_space = spaces.Box(-1.0, 1.0, (obs_dim,), np.float32)
        self.agents = np.zeros((num_envs, c.n_agents), np.int64)  # padded cell of each agent
        self.targets = np.zeros((num_envs, c.n_targets), np.int64)
        self.collected = np.zeros((num_envs, c.n_targets), bool)
        self.goals = np.zeros((num_envs, c.n_goals), np.int64)
        self.reached = np.zeros((num_envs, c.n_agents), bool)

    def _index_cells(self) -> None:
        """Number the cells of the padded grid, so that a move is an addition and a look-up."""
        rows, cols = self.config.grid_size
        blocked = np.pad(self.wall_grid, self._pad, constant_values=True)
        self._width = blocked.shape[1]
        self._blocked = blocked.ravel()
        self._free_cells = np.flatnonzero(~self._blocked)
        self._moves = MOVES @ np.array([self._width, 1])
        r, c = np.divmod(np.arange(blocked.size), self._width)
        self._row_col = np.stack([r, c], 1) - self._pad  # (cells, 2)
        extent = np.maximum(np.array([rows, cols]) - 1, 1)
        self._coordinates = (self._row_col / extent).astype(np.float32)
        window = np.arange(-self._pad, self._pad + 1)
        self._window = (window[:, None] * self._width + window).ravel()

    def _layout(self) -> tuple[dict[str, slice], int]:
        c = self.config
        sizes = {
            "self": 3 if c.n_goals else 2,
            "agents": (4 if c.n_goals else 3) * (c.n_agents - 1),
            "targets": 3 * c.n_targets,
            "goals": 3 * c.n_goals,
            "walls": len(self._window) if c.walls or c.view_radius else 0,
        }
        layout, start = {}, 0
        for name, size in sizes.items():
            layout[name] = slice(start, start + size)
            start += size
        return layout, start

    def cell(self, row_col: Any) -> np.ndarray:
        """Return the number of the cells at (row, column), ``(..., 2)`` -> ``(...)``.

        Raises
        ------
        ValueError
            If a position is outside the grid or in a wall.
        """
        row_col = np.asarray(row_col, np.int64)
        inside = (row_col >= 0) & (row_col < np.array(self.config.grid_size))
        if not inside.all():
            raise ValueError(f"position outside the {self.config.grid_size} grid: {row_col}")
        cell = (row_col + self._pad) @ np.array([self._width, 1])
        if self._blocked[cell].any():
            raise ValueError(f"position in a wall: {row_col}")
        return cell

    def row_col(self, cell: np.ndarray) -> np.ndarray:
        """Return (row, column) of numbered cells, ``(...)`` -> ``(..., 2)``."""
        return self._row_col[cell]

    def place(
        self,
        rows: np.ndarray | slice = slice(None),
        *,
        agents: Any = None,
        targets: Any = None,
        goals: Any = None,
        collected: Any = None,
    ) -> np.ndarray:
        """Put things where you want them and return the observations of the whole batch.

        Parameters
        ----------
        rows : which environments
        agents, targets, goals : positions (rows, columns), ``(n_rows, n, 2)`` or ``(n, 2)``
        collected : bool, ``(n_rows, n_targets)`` or ``(n_targets,)``

        Raises
        ------
        RuntimeError
            Before the first ``reset``.
        ValueError
            If a position is outside the grid or in a wall.
        """
        if self.streams is None:
            raise RuntimeError("call reset() before place()")
        if agents is not None:
            self.agents[rows] = self.cell(agents)
        if targets is not None:
            self.targets[rows] = self.cell(targets)
        if goals is not None:
            self.goals[rows] = self.cell(goals)
        if collected is not None:
            self.collected[rows] = collected
        return self._observe(slice(None))

    def _start(self, rows: np.ndarray) -> None:
        c = self.config
        assert self.streams is not None
        # The order of random keys is a random permutation; its head places everything apart.
        keys = self.streams.uniform(len(self._free_cells), rows)
        order = np.argsort(keys, axis=1)[:, : c.n_agents + c.n_targets + c.n_goals]
        cells = self._free_cells[order]
        self.agents[rows] = cells[:, : c.n_agents]
        self.targets[rows] = cells[:, c.n_agents : c.n_agents + c.n_targets]
        self.goals[rows] = cells[:, c.n_agents + c.n_targets :]
        self.collected[rows] = False
        self.reached[rows] = False

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        c = self.config
        moved = self.agents + self._moves[action]
        self.agents = np.where(self._blocked[moved], self.agents, moved)
        pay = self._collect() + self._arrive()
        done = np.all(self.collected, axis=1)
        if c.n_goals:
            done = done & np.all(self.reached, axis=1)
        if c.sparse_reward:
            total = c.target_reward * c.n_targets + c.goal_reward * c.n_agents * (c.n_goals > 0)
            pay = np.repeat(done[:, None] * (total / c.n_agents), c.n_agents, 1)
        overlaps = (self.agents[:, :, None] == self.agents[:, None, :]).sum(2) - 1
        reward = c.reward_scale * (pay + c.collision_penalty * overlaps + c.step_penalty)
        if c.shared_reward:
            reward = np.repeat(reward.mean(1, keepdims=True), c.n_agents, 1)
        return reward.astype(np.float32), done

    def _collect(self) -> np.ndarray:
        """Collect what agents stand on; return the pay of each agent (B, N)."""
        on = np.equal(self.agents[:, :, None], self.targets[:, None, :])  # (B, N, targets)
        on &= ~self.collected[:, None, :]
        if self.config.targets != "shared":
            on &= np.eye(self.n_agents, dtype=bool)
        arrived = on.sum(1)
        self.collected = self.collected | (arrived > 0)
        return self.config.target_reward * (on / np.maximum(arrived, 1)[:, None]).sum(2)

    def _arrive(self) -> np.ndarray | float:
        """Mark agents that stand on a goal; return the pay of each agent (B, N)."""
        if not self.config.n_goals:
            return 0.0
        on = (self.agents[:, :, None] == self.goals[:, None, :]).any(2)
        first = on & ~self.reached
        self.reached = self.reached | on
        return self.config.goal_reward * first

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        c, layout = self.config, self.obs_layout
        agents = self.agents[rows]
        here = self._coordinates[agents]  # (B, N, 2)
        obs = np.zeros((*agents.shape, self._obs_length), np.float32)
        obs[..., 0:2] = here
        if c.n_goals:
            obs[..., 2] = self.reached[rows]
        if c.n_agents > 1:
            self._observe_mates(obs[..., layout["agents"]], agents, rows)
        if c.n_targets:
            self._observe_targets(obs[..., layout["targets"]], agents, rows)
        if c.n_goals:
            goals = np.broadcast_to(self.goals[rows][:, None], (*agents.shape, c.n_goals))
            self._write(obs[..., layout["goals"]], agents, goals, None)
        if layout["walls"].start != layout["walls"].stop:
            obs[..., layout["walls"]] = self._blocked[agents[..., None] + self._window]
        return obs

    @property
    def _obs_length(self) -> int:
        return self.obs_layout["walls"].stop

    def _observe_mates(self, out: np.ndarray, agents: np.ndarray, rows: Any) -> None:
        mates = agents[:, self._others]  # (B, N, N - 1)
        self._write(out, agents, mates, None)
        if self.config.n_goals:
            out = out.reshape(*mates.shape, 4)
            out[..., 3] = out[..., 0] * self.reached[rows][:, self._others]

    def _observe_targets(self, out: np.ndarray, agents: np.ndarray, rows: Any) -> None:
        n = self.n_agents
        targets, seen = self.targets[rows], ~self.collected[rows]
        if self.config.targets == "shared":
            shape = (*agents.shape, targets.shape[1])
            targets = np.broadcast_to(targets[:, None], shape)
            seen = np.broadcast_to(seen[:, None], shape)
        else:
            order = (np.arange(n)[:, None] + np.arange(n)) % n  # own target first
            targets, seen = targets[:, order], seen[:, order]
            if self.config.targets == "hidden":
                # Agent i sees the target of i - 1, which stands last in its order, and no other.
                seen = seen & (np.arange(n) == n - 1)
        self._write(out, agents, targets, seen)

    def _write(
        self, out: np.ndarray, agents: np.ndarray, cells: np.ndarray, seen: np.ndarray | None
    ) -> None:
        """Write (seen, row offset, column offset) of each of E entities, ``out`` (B, N, E × F)."""
        out = out.reshape(*cells.shape, -1)  # splits the last axis: a view
        offset = self._coordinates[cells] - self._coordinates[agents][:, :, None]
        radius = self.config.view_radius
        if radius is not None:
            away = np.abs(self._row_col[cells] - self._row_col[agents][:, :, None]).max(3)
            near = away <= radius
            seen = near if seen is None else near & seen
        if seen is None:
            out[..., 0] = 1.0
            out[..., 1:3] = offset
        else:
            out[..., 0] = seen
            out[..., 1:3] = offset * seen[..., None]

    def _info(self) -> dict[str, Any]:
        done = self.collected.mean(1) if self.config.n_targets else self.reached.mean(1)
        return {"episode_metrics": {"targets_collected": done}, **self._masks("final_mask")}

    def _info_after_reset(self) -> dict[str, np.ndarray]:
        return self._masks("action_mask")

    def _masks(self, name: str) -> dict[str, np.ndarray]:
        if not self.config.action_masks:
            return {}
        return {name: ~self._blocked[self.agents[..., None] + self._moves]}

    def state(self) -> np.ndarray:
        """Return the global state (B, S): coordinates of all, and what is collected or reached."""
        parts = [self._coordinates[x].reshape(self.num_envs, -1) for x in self._places()]
        return np.concatenate([*parts, self.collected, self.reached], axis=1).astype(np.float32)

    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.agents, self.targets, self.goals

    def render_ansi(self, index: int = 0) -> str:
        """Return a text drawing of environment ``index``.

        ``#`` is a wall, ``*`` a target, ``G`` a goal, a digit an agent (``@`` from the
        eleventh on), ``+`` several agents.
        """
        grid = np.where(self.wall_grid, "#", ".").astype("<U1")
        for cell in self.goals[index]:
            grid[tuple(self._row_col[cell])] = "G"
        for cell in self.targets[index][~self.collected[index]]:
            grid[tuple(self._row_col[cell])] = "*"
        for i, cell in enumerate(self.agents[index]):
            several = (self.agents[index] == cell).sum() > 1
            grid[tuple(self._row_col[cell])] = "+" if several else str(i) if i < 10 else "@"
        return "\n".join("".join(line) for line in grid) + "\n"

    def render_rgb(self, index: int = 0, cell: int = 32) -> np.ndarray:
        """Return a picture of environment ``index``, (rows * cell, columns * cell, 3) uint8."""
        rows, cols = self.config.grid_size
        canvas = Canvas(rows * cell, cols * cell, PAPER)
        for r, c in np.argwhere(self.wall_grid):
            canvas.rectangle((c * cell, r * cell), cell, cell, WALL)
        for line in range(1, rows):
            canvas.rectangle((0, line * cell), cols * cell, 1, GRID_LINE)
        for line in range(1, cols):
            canvas.rectangle((line * cell, 0), 1, rows * cell, GRID_LINE)
        self._draw_things(canvas, index, cell)
        self._draw_agents(canvas, index, cell)
        return canvas.image()

    def _centre(self, at: int, cell: int) -> np.ndarray:
        """Return the middle of a numbered cell in pixels, (x, y)."""
        return (self._row_col[at][::-1] + 0.5) * cell

    def _draw_things(self, canvas: Canvas, index: int, cell: int) -> None:
        owned = self.config.targets != "shared"
        for at in self.goals[index]:
            corner = self._centre(at, cell) - 0.4 * cell
            canvas.rectangle(tuple(corner), 0.8 * cell, 0.8 * cell, GOAL)
        for k, at in enumerate(self.targets[index]):
            if not self.collected[index, k]:
                colour = AGENT_COLOURS[k % len(AGENT_COLOURS)] if owned else TARGET
                diamond = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)]) * 0.36 * cell
                canvas.polygon(self._centre(at, cell) + diamond, colour)

    def _draw_agents(self, canvas: Canvas, index: int, cell: int) -> None:
        agents = self.agents[index]
        for i, at in enumerate(agents):
            # Agents that share a cell stand side by side in it, smaller.
            together = np.flatnonzero(agents == at)
            n, place = len(together), int(np.flatnonzero(together == i)[0])
            centre = self._centre(at, cell) + np.array([(place - (n - 1) / 2) * cell / n, 0.0])
            radius = min(0.36, 0.46 / n) * cell
            canvas.disc(tuple(centre), radius, AGENT_COLOURS[i % len(AGENT_COLOURS)])
            canvas.text(tuple(centre), str(i % 10), 1.15 * radius, PAPER)


class MultiAgentGridWorld(PettingZooFace):
    """One grid world as a PettingZoo parallel environment; agents are named 0 to N - 1.

    Parameters
    ----------
    grid_size, n_agents, n_targets, max_steps, n_goals, reward_scale, collision_penalty,
    target_reward, goal_reward, step_penalty : see :class:`GridWorldConfig`
    render_mode : {"rgb_array", "ansi", "human", None}
    **options
        Any further option of :class:`GridWorldConfig`.

    Examples
    --------
    >>> env = MultiAgentGridWorld(grid_size=(8, 8), n_agents=3, n_targets=3, max_steps=50)
    >>> observations, infos = env.reset(seed=42)
    >>> observations[0].shape, env.action_space.n
    ((17,), np.int64(5))
    """

    metadata: dict[str, Any] = {**PettingZooFace.metadata, "name": "multi_agent_grid_world_v0"}

    def __init__(
        self,
        grid_size: Sequence[int] = (10, 10),
        n_agents: int = 2,
        n_targets: int = 3,
        max_steps: int = 100,
        n_goals: int = 0,
        reward_scale: float = 1.0,
        collision_penalty: float = -0.1,
        target_reward: float = 10.0,
        goal_reward: float = 10.0,
        step_penalty: float = -0.01,
        render_mode: str | None = None,
        **options: Any,
    ):
        world = BatchedGridWorld(
            1,
            autoreset=False,
            grid_size=grid_size,
            n_agents=n_agents,
            n_targets=n_targets,
            max_steps=max_steps,
            n_goals=n_goals,
            reward_scale=reward_scale,
            collision_penalty=collision_penalty,
            target_reward=target_reward,
            goal_reward=goal_reward,
            step_penalty=step_penalty,
            **options,
        )
        super().__init__(world, render_mode)

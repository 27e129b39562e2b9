"""The grid world, held against its rules written out once more in plain Python loops."""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, render_test
from pettingzoo.utils import parallel_to_aec

from marl_lib.config import ConfigError, from_mapping, to_mapping
from marl_lib.envs import BatchedGridWorld, GridWorldConfig, MultiAgentGridWorld
from marl_lib.envs.gridworld import wall_grid

UP, DOWN, LEFT, RIGHT, STAY = range(5)
STEPS = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1), STAY: (0, 0)}
Cell = tuple[int, int]


class Rules:
    """One grid world, a loop for everything: what the batched one must agree with."""

    def __init__(self, config: GridWorldConfig, walls: set[Cell], world: BatchedGridWorld, b: int):
        self.c, self.walls = config, walls
        self.rows, self.cols = config.grid_size
        self.take_over(world, b)

    def take_over(self, world: BatchedGridWorld, b: int) -> None:
        """Start an episode where row ``b`` of the batch has started one."""
        self.agents, self.targets, self.goals = (
            [(int(r), int(c)) for r, c in world.row_col(cells[b])]
            for cells in (world.agents, world.targets, world.goals)
        )
        self.collected = [False] * len(self.targets)
        self.reached = [False] * len(self.agents)
        self.time = 0
        everything = self.agents + self.targets + self.goals
        assert len(set(everything)) == len(everything), "something starts where something else does"
        assert all(self.free(cell) for cell in everything)

    def free(self, cell: Cell) -> bool:
        inside = 0 <= cell[0] < self.rows and 0 <= cell[1] < self.cols
        return inside and cell not in self.walls

    def after(self, cell: Cell, action: int) -> Cell:
        to = (cell[0] + STEPS[action][0], cell[1] + STEPS[action][1])
        return to if self.free(to) else cell

    def may(self, k: int, i: int) -> bool:
        return self.c.targets == "shared" or k == i

    def step(self, actions: list[int]) -> tuple[list[float], bool, bool]:
        c, n = self.c, self.c.n_agents
        self.time += 1
        self.agents = [self.after(cell, a) for cell, a in zip(self.agents, actions, strict=True)]
        pay = [0.0] * n
        for k, target in enumerate(self.targets):
            on = [i for i in range(n) if self.agents[i] == target and self.may(k, i)]
            if on and not self.collected[k]:
                self.collected[k] = True
                for i in on:
                    pay[i] += c.target_reward / len(on)
        for i in range(n):
            if self.agents[i] in self.goals and not self.reached[i]:
                self.reached[i] = True
                pay[i] += c.goal_reward
        done = all(self.collected) and (all(self.reached) or not self.goals)
        if c.sparse_reward:
            whole = c.target_reward * c.n_targets + (c.goal_reward * n if self.goals else 0.0)
            pay = [whole / n if done else 0.0] * n
        for i in range(n):
            pay[i] += c.step_penalty
            pay[i] += c.collision_penalty * (self.agents.count(self.agents[i]) - 1)
        pay = [c.reward_scale * x for x in pay]
        if c.shared_reward:
            pay = [sum(pay) / n] * n
        return pay, done, self.time == c.max_steps

    def sees(self, i: int, cell: Cell) -> bool:
        here, radius = self.agents[i], self.c.view_radius
        away = max(abs(here[0] - cell[0]), abs(here[1] - cell[1]))
        return radius is None or away <= radius

    def entity(self, i: int, cell: Cell, visible: bool = True) -> list[float]:
        if not visible or not self.sees(i, cell):
            return [0.0, 0.0, 0.0]
        here = self.agents[i]
        high, wide = max(self.rows - 1, 1), max(self.cols - 1, 1)
        return [1.0, (cell[0] - here[0]) / high, (cell[1] - here[1]) / wide]

    def obs(self, i: int) -> list[float]:
        c, n = self.c, self.c.n_agents
        row, col = self.agents[i]
        out = [row / max(self.rows - 1, 1), col / max(self.cols - 1, 1)]
        if self.goals:
            out += [float(self.reached[i])]
        for d in range(1, n):
            mate = (i + d) % n
            out += self.entity(i, self.agents[mate])
            if self.goals:
                out += [float(self.reached[mate] and self.sees(i, self.agents[mate]))]
        first = 0 if c.targets == "shared" else i
        for d in range(len(self.targets)):
            k = (first + d) % len(self.targets)
            shown = c.targets != "hidden" or k == (i - 1) % n
            out += self.entity(i, self.targets[k], shown and not self.collected[k])
        for goal in self.goals:
            out += self.entity(i, goal)
        if self.walls or c.walls or c.view_radius:
            around = range(-(c.view_radius or 1), (c.view_radius or 1) + 1)
            out += [float(not self.free((row + r, col + q))) for r in around for q in around]
        return out

    def mask(self, i: int) -> list[bool]:
        stands = self.agents[i]
        return [a == STAY or self.after(stands, a) != stands for a in range(5)]


def parts(walls: np.ndarray) -> list[set[Cell]]:
    """Return the connected parts of what is free, the largest first."""
    left = {(int(r), int(c)) for r, c in np.argwhere(~walls)}
    found = []
    while left:
        part, front = set(), {next(iter(left))}
        while front:
            part |= front
            front = {(r + a, c + b) for r, c in front for a, b in STEPS.values()} & left - part
        found.append(part)
        left -= part
    return sorted(found, key=len, reverse=True)


def drawing(walls: np.ndarray) -> tuple[str, ...]:
    return tuple("".join("#" if x else "." for x in row) for row in walls)


MONEY = st.sampled_from([-7.5, -0.1, 0.0, 0.3, 10.0])


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    """Options of a playable world, all kinds mixed."""
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    assume(rows * cols >= 2)
    walls = np.zeros((rows, cols), bool)
    options: dict[str, Any] = {"grid_size": (rows, cols)}
    if draw(st.booleans()):
        bits = draw(st.lists(st.integers(0, 2), min_size=rows * cols, max_size=rows * cols))
        walls = np.array(bits).reshape(rows, cols) == 0
        keep = (parts(walls) or [set()])[0]
        for r, c in itertools.product(range(rows), range(cols)):
            walls[r, c] = (r, c) not in keep
        options["walls"] = drawing(walls)
    elif min(rows, cols) >= 5 and draw(st.booleans()):
        options["walls"] = "four_rooms"
    free = int((~walls).sum()) if options.get("walls") != "four_rooms" else 20
    assume(free >= 2)
    kind = draw(st.sampled_from(["shared", "assigned", "hidden"]))
    if kind == "shared":
        n = draw(st.integers(1, min(4, free - 1)))
        targets = draw(st.integers(0, min(4, free - n)))
    else:
        assume(free >= (4 if kind == "hidden" else 2))
        n = targets = draw(st.integers(2 if kind == "hidden" else 1, min(4, free // 2)))
    goals = (
        draw(st.integers(0 if targets else 1, min(2, free - n - targets)))
        if (free > n + targets)
        else 0
    )
    assume(targets + goals > 0)
    return options | {
        "n_agents": n,
        "n_targets": targets,
        "n_goals": goals,
        "targets": kind,
        "max_steps": draw(st.integers(1, 12)),
        "reward_scale": draw(st.sampled_from([1.0, 0.1, -2.0])),
        "collision_penalty": draw(MONEY),
        "target_reward": draw(MONEY),
        "goal_reward": draw(MONEY),
        "step_penalty": draw(MONEY),
        "view_radius": draw(st.sampled_from([None, 1, 2, 7])),
        "shared_reward": draw(st.booleans()),
        "sparse_reward": draw(st.booleans()),
        "action_masks": draw(st.booleans()),
    }


def walls_of(world: BatchedGridWorld) -> set[Cell]:
    return {(int(r), int(c)) for r, c in np.argwhere(world.wall_grid)}


def random_joint(world: BatchedGridWorld, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 5, (world.num_envs, world.n_agents))


def world_of(num_envs: int = 1, **options: Any) -> BatchedGridWorld:
    """Return a reset world without autoreset, 5 × 7 with two agents and one target at first."""
    usual = {"grid_size": (5, 7), "n_agents": 2, "n_targets": 1}
    world = BatchedGridWorld(num_envs, autoreset=False, **(usual | options))
    world.reset(seed=0)
    return world


# The rules --------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(worlds(), st.integers(0, 2**32))
def test_random_play_follows_the_rules(options, seed):
    world = BatchedGridWorld(3, **options)
    obs, info = world.reset(seed=seed)
    walls, rng = walls_of(world), np.random.default_rng(seed)
    rules = [Rules(world.config, walls, world, b) for b in range(3)]
    agents = range(world.n_agents)
    for _ in range(14):
        for b, one in enumerate(rules):
            np.testing.assert_allclose(obs[b], [one.obs(i) for i in agents], atol=1e-6)
        if world.config.action_masks:
            np.testing.assert_array_equal(
                info["action_mask"], [[one.mask(i) for i in agents] for one in rules]
            )
        else:
            assert "action_mask" not in info
        action = random_joint(world, rng)
        obs, reward, terminated, truncated, info = world.step(action)
        assert obs.dtype == reward.dtype == np.float32 and obs.shape == world_shape(world)
        assert np.isfinite(obs).all() and np.abs(obs).max() <= 1
        for b, one in enumerate(rules):
            before = list(one.collected)
            pay, done, late = one.step([int(a) for a in action[b]])
            assert all(now >= then for now, then in zip(one.collected, before, strict=True))
            np.testing.assert_allclose(reward[b], pay, rtol=1e-5, atol=1e-5)
            assert (terminated[b], truncated[b]) == (done, late)
            assert info["_final_obs"][b] == (done or late)
            last = [one.obs(i) for i in agents]
            np.testing.assert_allclose(info["final_obs"][b], last, atol=1e-6)
            if options["n_targets"]:
                share = info["episode_metrics"]["targets_collected"][b]
                assert share == pytest.approx(np.mean(one.collected))
            if world.config.action_masks:
                expected = [one.mask(i) for i in agents]
                np.testing.assert_array_equal(info["final_mask"][b], expected)
            if done or late:
                one.take_over(world, b)
                assert not world.collected[b].any() and not world.reached[b].any()
            else:  # a row that goes on is where the rules have it, whoever else was reset
                np.testing.assert_array_equal(world.row_col(world.agents[b]), one.agents)
                np.testing.assert_array_equal(world.collected[b], one.collected)
                np.testing.assert_array_equal(obs[b], info["final_obs"][b])


def world_shape(world: BatchedGridWorld) -> tuple[int, int, int]:
    return world.num_envs, world.n_agents, world.obs_dim


def test_observation_space_is_the_range_of_observations():
    world = BatchedGridWorld(4, grid_size=(3, 4), view_radius=2, n_goals=1)
    obs, _ = world.reset(seed=0)
    space = world.single_observation_space
    assert space.contains(obs[0, 0]) and not space.contains(obs[0, 0] + 2)


def test_an_episode_is_truncated_at_exactly_max_steps_and_the_next_one_too():
    world = BatchedGridWorld(2, grid_size=(9, 9), n_agents=1, n_targets=1, max_steps=7)
    world.reset(seed=3)
    stay = np.full((2, 1), STAY)
    ends = [world.step(stay)[3].tolist() for _ in range(21)]
    assert ends == [[t % 7 == 0] * 2 for t in range(1, 22)]


def test_a_row_is_reset_at_its_own_end_and_leaves_the_others_alone():
    world = BatchedGridWorld(2, grid_size=(4, 5), n_agents=1, n_targets=1, max_steps=50)
    world.reset(seed=0)
    world.place(agents=[[[0, 0]], [[0, 0]]], targets=[[[0, 1]], [[3, 4]]])
    obs, reward, terminated, truncated, info = world.step(np.array([[RIGHT], [RIGHT]]))
    assert terminated.tolist() == [True, False] and not truncated.any()
    assert reward[0, 0] == pytest.approx(9.99)
    np.testing.assert_allclose(info["final_obs"][0, 0], [0, 1 / 4, 0, 0, 0], atol=1e-6)
    assert obs[0, 0, 2] == 1  # the target of the new episode is there to be seen
    assert world.elapsed.tolist() == [0, 1]
    np.testing.assert_allclose(obs[1, 0], [0, 1 / 4, 1, 1, 3 / 4], atol=1e-6)


@pytest.mark.parametrize(
    ("action", "ends"),
    [(UP, (0, 2)), (DOWN, (2, 2)), (LEFT, (1, 1)), (RIGHT, (1, 3)), (STAY, (1, 2))],
)
def test_moves_are_row_and_column(action, ends):
    world = world_of(grid_size=(3, 5))
    world.place(agents=[(1, 2), (0, 0)], targets=[(2, 4)])
    world.step(np.array([[action, STAY]]))
    assert tuple(world.row_col(world.agents[0, 0])) == ends


@pytest.mark.parametrize("size", [(2, 9), (9, 2), (1, 6), (6, 1)])
def test_each_axis_has_its_own_length(size):
    world = world_of(grid_size=size)
    rows, cols = size
    world.place(agents=[(0, 0), (rows - 1, cols - 1)], targets=[(rows - 1, 0)])
    for _ in range(9):  # into two opposite corners and beyond
        world.step(np.array([[RIGHT, LEFT]]))
        world.step(np.array([[DOWN, UP]]))
    assert tuple(world.row_col(world.agents[0, 0])) == (rows - 1, cols - 1)
    assert tuple(world.row_col(world.agents[0, 1])) == (0, 0)
    visited = np.zeros(size, int)
    world = BatchedGridWorld(2000, grid_size=size, n_agents=1, n_targets=1)
    world.reset(seed=1)
    np.add.at(visited, tuple(world.row_col(world.agents[:, 0]).T), 1)
    np.testing.assert_allclose(visited, 2000 / visited.size, atol=5 * np.sqrt(2000 / visited.size))


@pytest.mark.parametrize("n", [2, 3])
def test_agents_that_arrive_together_share_a_target(n):
    world = world_of(n_agents=n + 1, n_targets=2, target_reward=6.0)
    around = [(1, 2), (3, 2), (2, 1)][:n]
    world.place(agents=[*around, (0, 6)], targets=[(2, 2), (4, 6)])
    _, reward, terminated, _, _ = world.step(np.array([[DOWN, UP, RIGHT][:n] + [STAY]]))
    np.testing.assert_allclose(reward[0, :n], 6 / n - 0.01 - 0.1 * (n - 1), rtol=1e-6)
    assert reward[0, n] == pytest.approx(-0.01) and not terminated[0]
    assert world.collected.tolist() == [[True, False]]
    _, reward, *_ = world.step(np.full((1, n + 1), STAY))  # it pays once
    np.testing.assert_allclose(reward[0, :n], -0.01 - 0.1 * (n - 1), rtol=1e-6)


def test_agents_may_swap_places_free_of_charge():
    world = world_of()
    world.place(agents=[(1, 1), (1, 2)], targets=[(4, 4)])
    _, reward, *_ = world.step(np.array([[RIGHT, LEFT]]))
    np.testing.assert_allclose(reward, -0.01, rtol=1e-6)
    assert world.row_col(world.agents[0]).tolist() == [[1, 2], [1, 1]]


def test_a_collected_target_is_seen_to_be_gone():
    world = world_of(n_targets=2)
    scene: dict[str, Any] = {"agents": [(0, 0), (4, 6)], "targets": [(0, 3), (2, 3)]}
    before = world.place(**scene, collected=[False, False])
    after = world.place(**scene, collected=[False, True])
    changed = np.flatnonzero((before != after).any((0, 1)))
    part = world.obs_layout["targets"]
    assert changed.tolist() == list(range(part.start + 3, part.stop))
    assert (before != after).any(2).all() and (after[..., part.start + 3 : part.stop] == 0).all()


@pytest.mark.parametrize("radius", [1, 2])
def test_an_agent_sees_as_far_as_its_view(radius):
    world = world_of(grid_size=(7, 9), view_radius=radius, n_goals=1)
    layout = world.obs_layout
    for r, c in itertools.product(range(7), range(9)):
        obs = world.place(agents=[(3, 4), (r, c)], targets=[(r, c)], goals=[(r, c)])[0, 0]
        near = max(abs(r - 3), abs(c - 4)) <= radius
        seen = [1, (r - 3) / 6, (c - 4) / 8] if near else [0, 0, 0]
        for name in ("agents", "targets", "goals"):
            np.testing.assert_allclose(obs[layout[name]][:3], seen, atol=1e-6)
    assert layout["walls"].stop - layout["walls"].start == (2 * radius + 1) ** 2


def test_the_border_shows_in_the_view():
    world = world_of(grid_size=(4, 6), view_radius=1)
    obs = world.place(agents=[(0, 5), (2, 2)], targets=[(3, 0)])
    window = obs[0, :, world.obs_layout["walls"]].reshape(2, 3, 3)
    assert window[0].tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 1]]
    assert not window[1].any()


# Who may collect, who can see ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["assigned", "hidden"])
def test_only_its_owner_collects_an_assigned_target(kind):
    world = world_of(n_agents=3, n_targets=3, targets=kind)
    world.place(agents=[(0, 0), (0, 2), (4, 4)], targets=[(0, 1), (2, 2), (3, 3)])
    _, reward, *_ = world.step(np.array([[STAY, LEFT, STAY]]))
    assert not world.collected.any() and reward[0, 1] == pytest.approx(-0.01)
    _, reward, *_ = world.step(np.array([[RIGHT, STAY, STAY]]))
    assert world.collected.tolist() == [[True, False, False]]
    np.testing.assert_allclose(reward[0], [10 - 0.11, -0.11, -0.01], rtol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_hidden_target_moves_nothing_but_what_the_next_agent_sees(n):
    world = world_of(grid_size=(6, 8), n_agents=n, n_targets=n, targets="hidden")
    agents, targets = [(0, i) for i in range(n)], [(2, i) for i in range(n)]
    part = world.obs_layout["targets"]
    first = world.place(agents=agents, targets=targets)[0]
    for k in range(n):
        assert not first[k, part][:3].any()  # its own target, which stands first
        elsewhere = list(targets)
        for cell in itertools.product(range(3, 6), range(8)):
            elsewhere[k] = cell
            moved = world.place(agents=agents, targets=elsewhere)[0]
            changed = np.flatnonzero((moved != first).any(1))
            assert changed.tolist() == [(k + 1) % n]
        offset = moved[(k + 1) % n, part].reshape(n, 3)
        assert offset[:, 0].tolist() == [0] * (n - 1) + [1]  # and no other target
        at = np.subtract(elsewhere[k], agents[(k + 1) % n]) / [5, 7]
        np.testing.assert_allclose(offset[-1, 1:], at, atol=1e-6)


def test_silence_cannot_solve_hidden_targets():
    """An agent's observations are the same wherever its own target is, found or not."""
    own = [cell for cell in itertools.product(range(5), range(5)) if cell not in ((0, 0), (0, 4))]
    world = world_of(len(own), grid_size=(5, 5), n_targets=2, targets="hidden")
    seen = world.place(agents=[(0, 0), (4, 4)], targets=[[cell, (0, 4)] for cell in own])[:, 0]
    for action in np.random.default_rng(0).integers(0, 5, 30):
        assert (seen == seen[0]).all()
        seen = world.step(np.tile([action, STAY], (len(own), 1)))[0][:, 0]
    assert world.collected[:, 0].any() and not world.collected[:, 0].all()


# Rewards ------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(worlds(), st.integers(0, 1000))
def test_a_shared_reward_is_the_mean_and_keeps_the_sum(options, seed):
    own = BatchedGridWorld(4, **(options | {"shared_reward": False}))
    shared = BatchedGridWorld(4, **(options | {"shared_reward": True}))
    own.reset(seed=seed), shared.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(6):
        action = random_joint(own, rng)
        r_own, r_shared = own.step(action)[1], shared.step(action)[1]
        expected = np.repeat(r_own.mean(1, keepdims=True), own.n_agents, 1)
        np.testing.assert_allclose(r_shared, expected, atol=1e-4)
        np.testing.assert_allclose(r_shared.sum(1), r_own.sum(1), atol=1e-4)


def test_reward_scale_multiplies_every_reward():
    plain, scaled = world_of(8), world_of(8, reward_scale=-3.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = random_joint(plain, rng)
        np.testing.assert_allclose(scaled.step(action)[1], -3 * plain.step(action)[1], rtol=1e-5)


def test_a_sparse_reward_comes_all_at_once():
    world = world_of(n_targets=2, sparse_reward=True, target_reward=4.0)
    world.place(agents=[(0, 0), (4, 0)], targets=[(0, 1), (0, 2)])
    right = np.array([[RIGHT, STAY]])
    first, second = world.step(right), world.step(right)
    np.testing.assert_allclose(first[1], -0.01, rtol=1e-6)
    np.testing.assert_allclose(second[1], 4 * 2 / 2 - 0.01, rtol=1e-6)
    assert not first[2][0] and second[2][0]


def test_a_goal_pays_each_agent_once_and_ends_the_episode_with_the_targets():
    world = world_of(n_goals=1, goal_reward=3.0)
    world.place(agents=[(0, 0), (0, 4)], targets=[(1, 2)], goals=[(0, 2)])
    world.step(np.array([[RIGHT, LEFT]]))
    _, reward, terminated, *_ = world.step(np.array([[RIGHT, STAY]]))
    np.testing.assert_allclose(reward[0], [2.99, -0.01], rtol=1e-6)
    obs, reward, *_ = world.step(np.array([[STAY, LEFT]]))
    np.testing.assert_allclose(reward[0], [-0.11, 2.89], rtol=1e-6)
    assert (obs[0, :, 2] == 1).all() and not terminated[0]
    _, reward, terminated, *_ = world.step(np.array([[DOWN, LEFT]]))
    assert terminated[0] and reward[0, 0] == pytest.approx(9.99)


def test_a_world_of_goals_alone_ends_when_all_have_arrived():
    world = world_of(n_targets=0, n_goals=2)
    world.place(agents=[(0, 0), (0, 3)], goals=[(0, 1), (0, 2)])
    info = world.step(np.array([[RIGHT, STAY]]))[4]
    assert info["episode_metrics"]["targets_collected"][0] == 0.5
    assert world.step(np.array([[STAY, LEFT]]))[2][0]


def test_whether_a_mate_has_reached_a_goal_can_be_seen():
    """Otherwise two states that end at different times would look the same."""
    world = world_of(n_goals=1)
    scene = {"agents": [(0, 0), (1, 1)], "targets": [(4, 4)], "goals": [(2, 2)]}
    before = world.place(**scene)
    world.reached[0, 1] = True
    after = world.place(**scene)
    assert (before != after).any(2).all()


# Walls and masks ----------------------------------------------------------------------------------

MAZE = ("..#....", ".##.##.", ".#...#.", ".#.#.#.", "...#...")


def test_walls_stop_agents_and_keep_things_out():
    world = BatchedGridWorld(500, grid_size=(5, 7), walls=MAZE, n_agents=3, n_targets=2)
    obs, _ = world.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        for cells in (world.agents, world.targets):
            where = world.row_col(cells)
            assert not world.wall_grid[where[..., 0], where[..., 1]].any()
        obs, *_ = world.step(random_joint(world, rng))
    at = world.row_col(world.agents)
    padded = np.pad(world.wall_grid, 1, constant_values=True)
    for b, i in itertools.product(range(40), range(3)):
        r, c = at[b, i]
        window = obs[b, i, world.obs_layout["walls"]].reshape(3, 3)
        np.testing.assert_array_equal(window, padded[r : r + 3, c : c + 3])


@pytest.mark.parametrize("size", [*itertools.product((5, 6, 7, 10), (5, 8, 9))])
def test_four_rooms_are_four_and_one_world(size):
    grid = wall_grid(GridWorldConfig(grid_size=size, walls="four_rooms"))
    assert len(parts(grid)) == 1
    rows, cols = size
    doors = [(int(r), int(c)) for r, c in np.argwhere(~grid) if r == rows // 2 or c == cols // 2]
    assert len(doors) == 4
    for r, c in doors:
        grid[r, c] = True
    assert len(parts(grid)) == 4


@settings(max_examples=60)
@given(st.integers(1, 5), st.integers(2, 5), st.data())
def test_a_drawing_is_taken_if_and_only_if_it_is_one_piece(rows, cols, data):
    bits = data.draw(st.lists(st.booleans(), min_size=rows * cols, max_size=rows * cols))
    walls = np.array(bits).reshape(rows, cols)
    options = {"grid_size": (rows, cols), "n_agents": 1, "n_targets": 1, "walls": drawing(walls)}
    if len(parts(walls)) == 1 and (~walls).sum() >= 2:
        np.testing.assert_array_equal(BatchedGridWorld(1, **options).wall_grid, walls)
    else:
        with pytest.raises(ConfigError):
            BatchedGridWorld(1, **options)


def test_masks_are_of_the_observation_they_come_with():
    world = BatchedGridWorld(
        64, grid_size=(5, 7), walls=MAZE, n_agents=2, n_targets=1, action_masks=True, max_steps=6
    )
    rng = np.random.default_rng(0)
    _, info = world.reset(seed=0)
    moved = np.zeros(2)
    for _ in range(12):
        mask, before = info["action_mask"], world.row_col(world.agents)
        action = random_joint(world, rng)
        legal = np.take_along_axis(mask, action[..., None], 2)[..., 0]
        obs, _, terminated, truncated, info = world.step(action)
        goes_on = ~(terminated | truncated)
        went = (world.row_col(world.agents) != before).any(2)
        asked = (action != STAY) & goes_on[:, None]
        np.testing.assert_array_equal(went[asked], legal[asked])
        assert mask[..., STAY].all()
        same = (info["final_mask"] == info["action_mask"]).all((1, 2))
        assert same[goes_on].all()
        moved += (~goes_on).sum(), (~same).sum()
    assert moved[1] > moved[0] / 4  # a new episode has masks of its own


# Batches and seeds --------------------------------------------------------------------------------


@settings(max_examples=25)
@given(worlds(), st.integers(0, 1000))
def test_a_row_is_the_same_alone_and_in_a_larger_batch(options, seed):
    few, many = BatchedGridWorld(2, **options), BatchedGridWorld(5, **options)
    pair = BatchedGridWorld(7, **options)
    obs, more = few.reset(seed=seed)[0], many.reset(seed=seed)[0]
    np.testing.assert_array_equal(obs, more[:2])
    rng = np.random.default_rng(seed)
    twice = BatchedGridWorld(4, **options)
    both = twice.reset(seed=[seed, seed + 1])[0]
    with pytest.raises(ValueError, match="7 environments cannot be shared by 2 seeds"):
        pair.reset(seed=[0, 1])
    np.testing.assert_array_equal(both[:2], obs)
    for _ in range(15):
        action = random_joint(many, rng)
        one, two = few.step(action[:2]), many.step(action)
        three = twice.step(action[[0, 1, 2, 3]])
        for a, b, c in zip(one[:4], two[:4], three[:4], strict=True):
            np.testing.assert_array_equal(a, b[:2])
            np.testing.assert_array_equal(a, c[:2])
    other = BatchedGridWorld(2, **options)
    np.testing.assert_array_equal(both[2:], other.reset(seed=seed + 1)[0])


def test_permuting_the_rows_permutes_what_happens():
    options = {"grid_size": (6, 4), "n_agents": 3, "n_targets": 2, "n_goals": 1}
    a, b = world_of(16, **options), world_of(16, **options)
    a.reset(seed=5)
    order = np.random.default_rng(0).permutation(16)
    for name in a.state_arrays:
        getattr(b, name)[...] = getattr(a, name)[order]
    rng = np.random.default_rng(1)
    for _ in range(25):
        action = random_joint(a, rng)
        for x, y in zip(a.step(action)[:4], b.step(action[order])[:4], strict=True):
            np.testing.assert_array_equal(x[order], y)


@settings(max_examples=25)
@given(worlds(), st.integers(0, 1000), st.randoms())
def test_permuting_the_agents_permutes_their_rewards(options, seed, random):
    a = BatchedGridWorld(4, autoreset=False, **options)
    b = BatchedGridWorld(4, autoreset=False, **options)
    a.reset(seed=seed), b.reset(seed=seed)
    order = list(range(a.n_agents))
    random.shuffle(order)
    b.agents[:] = a.agents[:, order]
    if options["targets"] != "shared":
        b.targets[:] = a.targets[:, order]
    rng = np.random.default_rng(seed)
    for _ in range(10):
        action = random_joint(a, rng)
        x, y = a.step(action), b.step(action[:, order])
        np.testing.assert_allclose(x[1][:, order], y[1], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(x[2], y[2])
        np.testing.assert_array_equal(x[0][:, order, :2], y[0][:, :, :2])


def test_the_same_seed_gives_the_same_life_and_another_one_another():
    def life(seed: int) -> list[np.ndarray]:
        world = BatchedGridWorld(4, grid_size=(4, 4), max_steps=9)
        rng, kept = np.random.default_rng(0), [world.reset(seed=seed)[0]]
        return kept + [world.step(random_joint(world, rng))[0] for _ in range(30)]

    np.testing.assert_array_equal(life(1), life(1))
    assert all((x != y).any() for x, y in zip(life(1), life(2), strict=True))
    world = BatchedGridWorld(4)
    first, second = world.reset(seed=1)[0], world.reset()[0]
    assert (first != second).any()  # without a seed the streams go on
    np.testing.assert_array_equal(first, world.reset(seed=1)[0])


@settings(max_examples=25)
@given(worlds(), st.integers(0, 1000))
def test_a_restored_world_goes_on_exactly(options, seed):
    world, copy = BatchedGridWorld(3, **options), BatchedGridWorld(3, **options)
    world.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        world.step(random_joint(world, rng))
    kept = world.state_dict()
    world.step(random_joint(world, rng))  # what was kept stays as it was
    copy.load_state_dict(kept)
    world.load_state_dict(kept)
    for _ in range(20):
        action = random_joint(world, rng)
        for x, y in zip(world.step(action)[:4], copy.step(action)[:4], strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(world.state(), copy.state())


@settings(max_examples=40)
@given(worlds(), st.integers(0, 1000))
def test_the_state_tells_states_apart(options, seed):
    """Two rows have equal global states if and only if all that the rules know of them is equal."""
    world = BatchedGridWorld(24, autoreset=False, **options)
    world.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(3):
        world.step(random_joint(world, rng))
    state = world.state()
    assert state.shape == (24, state.shape[1]) and state.dtype == np.float32
    held = [getattr(world, name) for name in world.state_arrays]
    for i, j in itertools.combinations(range(24), 2):
        alike = all((x[i] == x[j]).all() for x in held)
        assert alike == (state[i] == state[j]).all()


@settings(max_examples=40)
@given(worlds(), st.integers(0, 1000))
def test_with_full_view_one_observation_tells_states_apart(options, seed):
    """States that differ differ in what every agent sees: the world is Markov."""
    assume(options["targets"] != "hidden")
    world = BatchedGridWorld(24, autoreset=False, **(options | {"view_radius": None}))
    world.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        world.step(random_joint(world, rng))
    obs = world.place()
    left = np.where(world.collected, 0, world.targets)  # where a collected one was is of no account
    held = [world.agents, left, world.collected, world.goals, world.reached]
    for i, j in itertools.combinations(range(24), 2):
        alike = all((x[i] == x[j]).all() for x in held)
        assert (alike == (obs[i] == obs[j]).all(1)).all()


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_agent": 3}, "'n_agent' is not known; did you mean 'n_agents'"),
        ({"grid_size": 8}, "grid_size must be a list, got 8"),
        ({"grid_size": (8, 8, 8)}, "grid_size must have 2 entries"),
        ({"grid_size": (0, 8)}, "grid_size must be at least 1 by 1"),
        ({"n_agents": 0}, "n_agents must be at least 1, got 0"),
        ({"n_agents": 2.5}, "n_agents must be of type int, got 2.5"),
        ({"n_agents": True}, "n_agents must be of type int, got True"),
        ({"n_targets": -1}, "n_targets must be at least 0"),
        ({"n_targets": 0}, "n_targets must be at least 1 without goals"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"view_radius": 0}, "view_radius must be at least 1 or null, got 0"),
        ({"targets": "mine"}, "targets 'mine' is not known.*shared, assigned, hidden"),
        ({"targets": "assigned"}, r"n_targets must be n_agents \(2\) when targets are assigned"),
        ({"targets": "hidden", "n_agents": 1, "n_targets": 1}, "at least 2 for hidden"),
        ({"shared_reward": 1}, "shared_reward must be of type bool, got 1"),
        ({"step_penalty": float("nan")}, "step_penalty must be .*finite.*nan"),
        ({"target_reward": float("inf")}, "target_reward must be .*finite.*inf"),
        ({"reward_scale": "a lot"}, "reward_scale must be of type float, got 'a lot'"),
        ({"grid_size": (2, 2), "n_agents": 3}, "must be at most 4, the cells, got 6"),
        ({"walls": "five_rooms"}, "walls must be .*four_rooms.*got 'five_rooms'"),
        ({"walls": "four_rooms", "grid_size": (4, 9)}, "at least 5 by 5 for rooms"),
        ({"walls": ("...", "..."), "grid_size": (3, 3)}, "3 strings of 3 characters # or ."),
        ({"walls": ("..", ".x"), "grid_size": (2, 2)}, "2 strings of 2 characters # or ."),
        ({"walls": ("....", "####", "...."), "grid_size": (3, 4)}, "every free cell"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        BatchedGridWorld(1, **options)
    with pytest.raises(ConfigError, match=message):
        MultiAgentGridWorld(**options)


def test_numbers_may_be_numpys():
    world = BatchedGridWorld(2, grid_size=tuple(np.array([4, 5])), n_agents=np.int64(3))
    assert world.config == GridWorldConfig(grid_size=(4, 5), n_agents=3)
    assert type(world.config.n_agents) is int


@settings(max_examples=40)
@given(worlds())
def test_options_survive_writing_and_reading(options):
    config = from_mapping(GridWorldConfig, options)
    assert from_mapping(GridWorldConfig, to_mapping(config)) == config


@pytest.mark.parametrize(
    "action", [[[5, 0]], [[-1, 0]], [[0.0, 1.0]], [[True, False]], [[0]], [0, 0]]
)
def test_wrong_actions_are_refused(action):
    world = world_of()
    before = world.state()
    with pytest.raises(ValueError, match="action"):
        world.step(np.array(action))
    np.testing.assert_array_equal(world.state(), before)


def test_things_are_not_placed_in_walls_or_outside():
    world = world_of(walls=MAZE)
    with pytest.raises(ValueError, match="outside"):
        world.place(agents=[(0, 0), (5, 0)])
    with pytest.raises(ValueError, match="outside"):
        world.place(targets=[(0, -1)])
    with pytest.raises(ValueError, match="wall"):
        world.place(agents=[(0, 0), (0, 2)])


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_cells_and_positions_are_two_names_of_one_place(rows, cols, radius):
    assume(rows * cols >= 2)
    size = (rows, cols)
    world = BatchedGridWorld(1, grid_size=size, n_agents=1, n_targets=1, view_radius=radius)
    everywhere = np.array(list(itertools.product(range(rows), range(cols))))
    np.testing.assert_array_equal(world.row_col(world.cell(everywhere)), everywhere)


def test_some_rows_can_be_placed():
    world = world_of(3)
    before = world.row_col(world.agents)
    world.place(np.array([2]), agents=[[(0, 1), (2, 3)]])
    np.testing.assert_array_equal(world.row_col(world.agents)[:2], before[:2])
    assert world.row_col(world.agents)[2].tolist() == [[0, 1], [2, 3]]


# Pictures -----------------------------------------------------------------------------------------


def test_the_text_drawing():
    world = world_of(grid_size=(3, 4), n_agents=4, n_targets=2, n_goals=1, walls=("#...",) * 3)
    world.place(agents=[(0, 1), (2, 2), (1, 1), (1, 1)], targets=[(2, 3), (0, 3)], goals=[(0, 2)])
    world.collected[0, 1] = True
    assert world.render_ansi() == "#0G.\n#+..\n#.1*\n"


def test_an_eleventh_agent_is_drawn():
    world = world_of(grid_size=(1, 13), n_agents=12, n_targets=1)
    world.place(agents=[(0, i) for i in range(12)], targets=[(0, 12)])
    assert world.render_ansi() == "0123456789@@*\n"
    assert world.render_rgb(cell=20).shape == (20, 260, 3)


def test_the_picture_shows_what_is_there():
    world = world_of(2, grid_size=(4, 6), n_goals=1, walls=("#.....",) + ("......",) * 3)
    where = {"agents": [(1, 1), (2, 4)], "targets": [(3, 2)], "goals": [(1, 4)]}
    world.place(**where)
    picture = world.render_rgb(0)
    assert picture.shape == (4 * 32, 6 * 32, 3) and picture.dtype == np.uint8
    cells = picture.reshape(4, 32, 6, 32, 3).swapaxes(1, 2)[:, :, 2:, 2:]  # without the lines
    plain = cells[3, 5]
    assert (plain == plain[0, 0]).all()
    shown = {(r, c) for r in range(4) for c in range(6) if (cells[r, c] != plain).any()}
    assert shown == {(0, 0), (1, 1), (2, 4), (3, 2), (1, 4)}
    assert (cells[1, 1] != cells[2, 4]).any()  # agents can be told apart
    world.place(agents=[(1, 1), (1, 1)])
    together = world.render_rgb(0)[32:64, 32:64]
    one = picture[32:64, 32:64]
    assert (together != one).any()
    world.place(agents=[(1, 1), (2, 4)], collected=[True])
    gone = world.render_rgb(0)
    assert (gone[96:, 64:96] != picture[96:, 64:96]).any()
    np.testing.assert_array_equal(gone[:96], picture[:96])


def test_the_second_row_has_its_own_picture():
    world = world_of(2)
    world.place(agents=[[(0, 0), (1, 1)], [(4, 6), (3, 3)]], targets=[[(2, 2)], [(2, 2)]])
    assert world.render_ansi(0) != world.render_ansi(1)
    assert (world.render_rgb(0) != world.render_rgb(1)).any()


# The PettingZoo face ------------------------------------------------------------------------------

KINDS = [
    {},
    {"n_goals": 2, "view_radius": 2, "walls": "four_rooms", "action_masks": True},
    {"targets": "hidden", "n_targets": 3, "shared_reward": True, "sparse_reward": True},
]


def face(options: dict[str, Any], **more: Any) -> MultiAgentGridWorld:
    return MultiAgentGridWorld(grid_size=(5, 6), n_agents=3, max_steps=25, **options, **more)


@pytest.mark.parametrize("options", KINDS)
def test_pettingzoo_accepts_it(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(face(options), num_cycles=60)
        parallel_seed_test(lambda: face(options), num_cycles=60)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            render_test(lambda **kw: parallel_to_aec(face(options, **kw)))
        assert printed.getvalue().count("\n") >= 25  # "human" prints the drawing
        # Numbers as names of agents are what the world is asked for; PettingZoo advises against.
        warnings.filterwarnings("ignore", message="(Agents are|We) recommend")
        api_test(parallel_to_aec(face(options)), num_cycles=60)


def test_agents_are_numbers_and_share_their_spaces():
    env = face({})
    assert env.possible_agents == [0, 1, 2] and env.agents == []
    observations, infos = env.reset(seed=1)
    assert env.agents == list(observations) == list(infos) == [0, 1, 2]
    assert env.num_agents == env.max_num_agents == 3
    assert env.action_space(2) is env.action_space and env.action_space.n == 5
    assert env.observation_space(1) is env.observation_space
    assert all(env.observation_space(i).contains(observations[i]) for i in env.agents)
    assert env.state().shape == (2 * 3 + 2 * 3 + 3 + 3,)


def test_the_face_is_a_batch_of_one():
    env = face({"action_masks": True, "walls": "four_rooms"})
    world = BatchedGridWorld(
        1,
        autoreset=False,
        grid_size=(5, 6),
        n_agents=3,
        max_steps=25,
        action_masks=True,
        walls="four_rooms",
    )
    observations, infos = env.reset(seed=9)
    obs, info = world.reset(seed=9)
    rng = np.random.default_rng(0)
    while env.agents:
        np.testing.assert_array_equal([observations[i] for i in range(3)], obs[0])
        masks = [infos[i]["action_mask"] for i in range(3)]
        np.testing.assert_array_equal(masks, info["action_mask"][0])
        action = random_joint(world, rng)
        observations, rewards, terminated, truncated, infos = env.step(dict(enumerate(action[0])))
        obs, reward, ended, late, info = world.step(action)
        assert list(rewards.values()) == reward[0].tolist()
        assert all(type(x) is float for x in rewards.values())
        assert terminated == dict.fromkeys(range(3), bool(ended[0]))
        assert truncated == dict.fromkeys(range(3), bool(late[0]))
    assert world.elapsed[0] == 25 or ended[0]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(dict.fromkeys(range(3), STAY))
    env.reset()
    assert env.agents == [0, 1, 2]


def test_wrong_calls_of_the_face():
    env = face({})
    with pytest.raises(RuntimeError, match="reset"):
        env.step(dict.fromkeys(range(3), STAY))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"no action for agents \[1\]"):
        env.step({0: STAY, 2: STAY})
    with pytest.raises(ValueError, match="actions are integers from 0 to 4"):
        env.step({0: STAY, 1: 5, 2: STAY})
    with pytest.raises(ValueError, match="actions are integers from 0 to 4"):
        env.step({0: STAY, 1: None, 2: STAY})
    with pytest.raises(ValueError, match="render_mode 'rgb' is not one of rgb_array, ansi, human"):
        face({}, render_mode="rgb")


def test_there_is_no_picture_before_the_first_episode():
    for mode in ("rgb_array", "ansi", "human"):
        with pytest.raises(RuntimeError, match="reset"):
            face({}, render_mode=mode).render()
    assert face({}).render() is None


def test_the_calls_of_the_source_notebook(capsys):
    env = MultiAgentGridWorld(
        grid_size=(8, 8),
        n_agents=3,
        n_targets=3,
        max_steps=50
    )  # fmt: skip
    assert env.observation_space.shape[0] == 2 + 3 * 2 + 3 * 3
    assert env.action_space.n == 5
    stored, episode_rewards = [], []
    for _ in range(2):
        observations, _ = env.reset()
        episode_reward = 0
        done = False
        step = 0
        while not done and step < 50:
            actions = {i: env.action_space.sample() for i in range(3)}
            next_observations, rewards, terminated, truncated, _ = env.step(actions)
            for i in range(3):
                stored.append(
                    (observations[i], actions[i], rewards[i], next_observations[i], terminated[i])
                )
            observations = next_observations
            episode_reward += sum(rewards.values())
            done = all(terminated.values())
            step += 1
        assert done or (step == 50 and all(truncated.values()) and not env.agents)
        episode_rewards.append(episode_reward)
    assert np.isfinite(episode_rewards).all() and len(stored) > 3
    assert all(s.dtype == np.float32 and s.shape == (17,) for s, *_ in stored)
    observations, _ = env.reset()
    for _ in range(20):
        actions = {i: env.action_space.sample() for i in range(3)}
        next_observations, rewards, terminated, truncated, _ = env.step(actions)
        if all(terminated.values()):
            break

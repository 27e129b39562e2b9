"""The planner and the exact values, held against answers found in other ways."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linprog

from marl_lib.config import ConfigError
from marl_lib.envs import BatchedGridWorld, make
from marl_lib.planning import (
    Planner,
    Table,
    policy_value,
    random_actions,
    tabulate,
    value_iteration,
)
from marl_lib.rollout import play

MAZE = ("..#....", ".##.##.", ".#...#.", ".#.#.#.", "...#...")
STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))
RIGHT, STAY = 3, 4
Cell = tuple[int, int]


def free_cells(world: BatchedGridWorld) -> set[Cell]:
    return {(int(r), int(c)) for r, c in np.argwhere(~world.wall_grid)}


def distances(free: set[Cell], start: Cell) -> dict[Cell, int]:
    """Return the number of moves from ``start`` to every cell, by breadth-first search."""
    found, front = {start: 0}, [start]
    for r, c in front:
        for dr, dc in STEPS[:4]:
            to = (r + dr, c + dc)
            if to in free and to not in found:
                found[to] = found[(r, c)] + 1
                front.append(to)
    return found


def places(cells: np.ndarray, world: BatchedGridWorld) -> list[Cell]:
    return [(int(r), int(c)) for r, c in world.row_col(cells)]


def world_of(num_envs: int = 1, **options: Any) -> BatchedGridWorld:
    world = BatchedGridWorld(num_envs, autoreset=False, **options)
    world.reset(seed=1)
    return world


# The planner --------------------------------------------------------------------------------------


def assignments(cost: list[list[int]]) -> list[list[int]]:
    """Return the path lengths of every way to give each target its agent or each agent a target."""
    n, k = len(cost), len(cost[0])
    if n >= k:
        return [[cost[i][t] for t, i in enumerate(p)] for p in itertools.permutations(range(n), k)]
    return [[cost[i][t] for i, t in enumerate(p)] for p in itertools.permutations(range(k), n)]


@pytest.mark.parametrize(
    ("n", "k", "walls"), [(3, 3, None), (4, 2, None), (3, 3, MAZE), (2, 2, MAZE), (1, 1, MAZE)]
)
def test_the_planned_paths_are_the_shortest_there_are(n, k, walls):
    """Every step shortens the best sum of path lengths, over all assignments, by what it can."""
    options = {"grid_size": (5, 7), "n_agents": n, "n_targets": k, "walls": walls}
    world = world_of(20, max_steps=60, collision_penalty=0.0, **options)
    planner, free = Planner(world), free_cells(world)

    def least(b: int) -> int:
        left = [t for t, c in zip(places(world.targets[b], world), world.collected[b]) if not c]  # noqa: B905
        if not left:
            return 0
        reach = [distances(free, agent) for agent in places(world.agents[b], world)]
        return min(map(sum, assignments([[d[t] for t in left] for d in reach])))

    before = [least(b) for b in range(20)]
    while not world.collected.all():
        busy = np.minimum((~world.collected).sum(1), n)
        world.step(planner.act())
        after = [least(b) for b in range(20)]
        assert all(x - y >= m for x, y, m in zip(before, after, busy, strict=True))
        before = after


def best_return(world: BatchedGridWorld, b: int) -> float:
    """Return what two agents can earn at most in environment ``b``, going back from the end.

    The rules are written out here once more: shared targets, no walls, no goals.
    """
    c = world.config
    cells = sorted(free_cells(world))
    index = {cell: i for i, cell in enumerate(cells)}
    targets = [index[t] for t in places(world.targets[b], world)]
    after = np.array(
        [[index.get((r + dr, q + dq), i) for dr, dq in STEPS] for i, (r, q) in enumerate(cells)]
    )
    n, full = len(cells), 2 ** len(targets)
    bits = np.array([sum(2**k for k, t in enumerate(targets) if t == i) for i in range(n)])
    i, j, x, y = np.indices((n, n, 5, 5))
    to_i, to_j = after[i, x], after[j, y]  # (n, n, 5, 5)
    value = np.zeros((full, n, n))
    for _ in range(c.max_steps):
        new = np.zeros_like(value)
        for had in range(full - 1):
            has = had | bits[to_i] | bits[to_j]
            found = np.array([bin(v).count("1") for v in range(full)])[has ^ had]
            reward = c.target_reward * found + 2 * c.step_penalty
            reward = reward + 2 * c.collision_penalty * (to_i == to_j)
            new[had] = (reward + value[has, to_i, to_j]).max((2, 3))
        value = new
    one, two = (index[cell] for cell in places(world.agents[b], world))
    return float(value[0, one, two])


@pytest.mark.parametrize(
    ("size", "k", "equal", "gap"),
    [
        ((3, 4), 1, 1.0, 0.0),
        ((3, 4), 2, 0.8, 0.005),
        ((2, 6), 2, 0.75, 0.005),
        ((3, 3), 3, 0.7, 0.03),
    ],
)
def test_the_planner_comes_close_to_the_best_play(size, k, equal, gap):
    """Best play is found by search of all joint moves; its bound is one that holds for anyone."""
    world = world_of(24, grid_size=size, n_agents=2, n_targets=k, max_steps=12)
    best = np.array([best_return(world, b) for b in range(24)])
    planned = play(world, Planner(world), seed=1).returns
    assert (planned <= best + 1e-5).all()
    assert (planned > best - 1e-5).mean() >= equal
    assert (best - planned).mean() <= gap + 1e-5
    drawn = play(world, random_actions(world), seed=1).returns
    assert (drawn <= best + 1e-5).all() and drawn.mean() < planned.mean() - 1


def test_the_planner_beats_random_play_by_far_on_the_worlds_of_the_book():
    world = BatchedGridWorld(200, grid_size=(8, 8), n_agents=3, n_targets=3, max_steps=50)
    planned = play(world, Planner(world), seed=0)
    assert planned.metrics["targets_collected"].mean() == 1
    assert 29.7 < planned.returns.mean() < 30 and planned.lengths.max() < 14
    drawn = play(world, random_actions(world), seed=0)
    assert drawn.returns.mean() < 20


@pytest.mark.parametrize("kind", ["assigned", "hidden"])
def test_the_planner_sends_each_agent_to_its_own_target(kind):
    world = world_of(20, grid_size=(4, 5), n_agents=3, n_targets=3, targets=kind, max_steps=20)
    free = free_cells(world)
    far = [
        max(
            distances(free, a)[t]
            for a, t in zip(places(world.agents[b], world), places(world.targets[b], world))  # noqa: B905
        )
        for b in range(20)
    ]
    np.testing.assert_array_equal(play(world, Planner(world), seed=1).lengths, far)


def test_the_planner_brings_everyone_to_a_goal():
    world = world_of(30, grid_size=(5, 6), n_agents=3, n_targets=2, n_goals=2, max_steps=40)
    played = play(world, Planner(world), seed=2)
    assert world.reached.all() and world.collected.all() and played.lengths.max() < 40
    alone = world_of(30, grid_size=(5, 6), n_agents=2, n_targets=0, n_goals=2, max_steps=40)
    free = free_cells(alone)
    far = [
        max(
            min(distances(free, a)[g] for g in places(alone.goals[b], alone))
            for a in places(alone.agents[b], alone)
        )
        for b in range(30)
    ]
    np.testing.assert_array_equal(play(alone, Planner(alone), seed=1).lengths, far)


def test_the_planner_stays_where_its_target_is():
    world = world_of(grid_size=(3, 3), n_agents=1, n_targets=1)
    world.place(agents=[(1, 1)], targets=[(1, 1)])
    assert Planner(world).act().tolist() == [[STAY]]


def test_the_planner_goes_round_a_mate_if_that_is_as_short():
    world = world_of(grid_size=(3, 3), n_agents=2, n_targets=2, targets="assigned")
    for block in ((0, 1), (1, 0)):  # agent 1 is done and stands on one of the two shortest paths
        world.place(agents=[(0, 0), block], targets=[(1, 1), (2, 2)], collected=[False, True])
        world.step(Planner(world).act())
        assert (world.row_col(world.agents[0, 0]) != block).any()
        world.collected[:] = False


def test_the_planner_follows_the_world_through_autoreset():
    world = BatchedGridWorld(8, grid_size=(4, 4), n_agents=1, n_targets=1, max_steps=30)
    world.reset(seed=0)
    planner, ends = Planner(world), np.zeros(8)
    for _ in range(40):
        _, _, terminated, truncated, _ = world.step(planner.act())
        ends += terminated
        assert not truncated.any()
    assert ends.min() >= 5


def test_random_continuous_actions_fill_their_bounds_evenly():
    world = make("CooperativeNavigation", 400, {"continuous": True})
    obs, info = world.reset(seed=0)
    drawn = random_actions(world, seed=3)(obs, info)
    assert drawn.shape == (400, 3, 2) and drawn.dtype == np.float32
    low, high = world.single_action_space.low[0], world.single_action_space.high[0]
    assert stats.kstest(drawn.ravel(), stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_random_actions_are_legal_and_even():
    options: dict[str, Any] = {"grid_size": (5, 7), "n_agents": 2, "n_targets": 1, "walls": MAZE}
    world = world_of(400, action_masks=True, **options)
    obs, info = world.reset(seed=0)
    act, counts = random_actions(world, seed=3), np.zeros((400, 2, 5))
    for _ in range(300):
        action = act(obs, info)
        assert np.take_along_axis(info["action_mask"], action[..., None], 2).all()
        np.add.at(counts, (*np.indices((400, 2)), action), 1)
    share = info["action_mask"] / info["action_mask"].sum(-1, keepdims=True)
    np.testing.assert_allclose(counts / 300, share, atol=0.16)
    np.testing.assert_allclose((counts / 300 - share)[info["action_mask"]].mean(), 0, atol=1e-9)
    one = random_actions(world, seed=3)(obs, info)
    np.testing.assert_array_equal(one, random_actions(world, seed=3)(obs, info))
    assert (one != random_actions(world, seed=4)(obs, info)).any()


# Exact values -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maze() -> Table:
    return tabulate(grid_size=(5, 7), n_agents=1, n_targets=1, walls=MAZE)


@pytest.fixture(scope="module")
def two_targets() -> Table:
    return tabulate(grid_size=(2, 4), n_agents=1, n_targets=2)


def earned(moves: int, gamma: float) -> float:
    """Return what it is worth to walk ``moves`` steps and be paid 10 at the end of the last."""
    return sum(-0.01 * gamma**t for t in range(moves)) + 10 * gamma ** (moves - 1)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95])
def test_one_target_is_worth_what_its_distance_says(maze, gamma):
    value = value_iteration(maze, gamma).max(1)
    free = {(r, c) for r, row in enumerate(MAZE) for c, char in enumerate(row) if char == "."}
    assert len(value) == len(free) * (len(free) - 1)
    for agent, target, v in zip(
        maze.agent.tolist(), maze.targets[:, 0].tolist(), value, strict=True
    ):
        moves = distances(free, tuple(agent))[tuple(target)]
        assert v == pytest.approx(earned(moves, gamma) if gamma else [9.99, -0.01][moves > 1])


def test_two_targets_are_worth_the_better_order(two_targets):
    gamma, table = 0.9, two_targets
    value = value_iteration(table, gamma).max(1)
    free = set(itertools.product(range(2), range(4)))
    for s in range(len(value)):
        start = tuple(table.agent[s].tolist())
        left = [tuple(t) for t in table.targets[s][~table.collected[s]].tolist()]
        worths = []
        for order in itertools.permutations(left):
            here, time, worth = start, 0, 0.0
            for target in order:
                moves = distances(free, here)[target]
                worth += gamma**time * earned(moves, gamma)
                here, time = target, time + moves
            worths.append(worth)
        assert value[s] == pytest.approx(max(worths), abs=1e-6)


def test_value_iteration_agrees_with_linear_programming(two_targets):
    """The optimal values are the smallest that are at least as good as every one-step plan."""
    gamma, table = 0.8, two_targets
    n, a = table.reward.shape
    matrix = np.zeros((n * a, n))
    rows = np.arange(n * a)
    np.add.at(matrix, (rows, table.next_state.ravel()), gamma * ~table.terminated.ravel())
    matrix[rows, rows // a] -= 1
    solved = linprog(np.ones(n), matrix, -table.reward.ravel(), bounds=(None, None))
    np.testing.assert_allclose(value_iteration(table, gamma).max(1), solved.x, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"grid_size": (2, 4), "n_targets": 2},
        {"grid_size": (3, 4), "n_targets": 1, "view_radius": 1, "sparse_reward": True},
        {"grid_size": (5, 7), "n_targets": 1, "walls": MAZE, "reward_scale": 0.5},
        {"grid_size": (4, 1), "n_targets": 2, "target_reward": 1.0, "sparse_reward": True},
        {"grid_size": (3, 3), "n_targets": 1, "targets": "assigned", "step_penalty": -1.0},
    ],
)
def test_the_table_says_what_the_world_does(options):
    """Each state of the table is set up in the world, and one action is played in it."""
    table = tabulate(n_agents=1, **options)
    n_states = len(table.agent)
    actions = np.random.default_rng(0).integers(0, 5, n_states)
    world = world_of(n_states, n_agents=1, **options)
    obs = world.place(agents=table.agent[:, None], targets=table.targets, collected=table.collected)
    np.testing.assert_array_equal(table.obs, obs[:, 0])
    s = np.arange(n_states)
    obs, reward, terminated, _, _ = world.step(actions[:, None])
    np.testing.assert_array_equal(table.reward[s, actions].astype(np.float32), reward[:, 0])
    np.testing.assert_array_equal(table.terminated[s, actions], terminated)
    after, on = table.next_state[s, actions], ~terminated
    assert on.any() and terminated.any()
    np.testing.assert_array_equal(table.agent[after][on], world.row_col(world.agents[:, 0])[on])
    np.testing.assert_array_equal(table.targets[after][on], world.row_col(world.targets)[on])
    np.testing.assert_array_equal(table.collected[after][on], world.collected[on])
    np.testing.assert_array_equal(table.obs[after][on], obs[on, 0])


def test_the_table_holds_every_state_that_play_comes_to(two_targets):
    found = {
        (*a, *t.ravel(), *c)
        for a, t, c in zip(
            two_targets.agent.tolist(), two_targets.targets, two_targets.collected, strict=True
        )
    }
    assert len(found) == len(two_targets.agent)  # no state stands twice
    world = BatchedGridWorld(300, grid_size=(2, 4), n_agents=1, n_targets=2)
    world.reset(seed=0)
    seen, rng = set(), np.random.default_rng(0)
    for _ in range(60):
        world.step(rng.integers(0, 5, (300, 1)))
        parts = world.row_col(world.agents[:, 0]), world.row_col(world.targets), world.collected
        seen |= {(*a, *t.ravel(), *c) for a, t, c in zip(*parts, strict=True)}
    assert seen <= found and len(seen) > 0.8 * len(found)
    reached = ~two_targets.collected.any(1)  # and none that play cannot come to
    for _ in range(20):
        after = two_targets.next_state[reached][~two_targets.terminated[reached]]
        reached[after] = True
    assert reached.all()


def test_the_best_policy_is_worth_the_best_values(maze):
    q = value_iteration(maze, 0.9)
    np.testing.assert_allclose(policy_value(maze, q.argmax(1), 0.9), q.max(1), atol=1e-7)
    worse = policy_value(maze, np.random.default_rng(0).integers(0, 5, len(q)), 0.9)
    assert (worse <= q.max(1) + 1e-7).all() and (worse < q.max(1) - 1).any()
    staying = policy_value(maze, np.full(len(q), STAY), 0.9)
    np.testing.assert_allclose(staying, -0.01 / (1 - 0.9), atol=1e-6)


@pytest.mark.parametrize("gamma", [0.7, 1.0])
def test_the_value_of_a_policy_is_what_play_brings(two_targets, gamma):
    best = value_iteration(two_targets, 0.9).argmax(1)
    world = world_of(len(best), grid_size=(2, 4), n_agents=1, n_targets=2)
    world.place(
        agents=two_targets.agent[:, None],
        targets=two_targets.targets,
        collected=two_targets.collected,
    )
    state, live, total = np.arange(len(best)), np.ones(len(best), bool), np.zeros(len(best))
    for t in range(20):
        action = best[state]
        _, reward, terminated, _, _ = world.step(action[:, None])
        total += live * gamma**t * reward[:, 0]
        live &= ~terminated
        state = two_targets.next_state[state, action]
    assert not live.any()
    np.testing.assert_allclose(policy_value(two_targets, best, gamma), total, atol=1e-5)


def test_without_discount_a_policy_may_come_by_every_state():
    n = 6  # a chain, each state before the next
    none = np.zeros((n, 1))
    table = Table(
        agent=none,
        targets=none,
        collected=none,
        obs=none,
        next_state=np.arange(1, n + 1)[:, None] % n,
        reward=np.ones((n, 1)),
        terminated=np.arange(n)[:, None] == n - 1,
    )
    assert policy_value(table, np.zeros(n, int), 1.0).tolist() == [6, 5, 4, 3, 2, 1]


def test_without_discount_a_policy_must_end(maze):
    with pytest.raises(ValueError, match="never ends"):
        policy_value(maze, np.full(len(maze.agent), RIGHT), 1.0)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_impossible_discounts_are_refused(maze, gamma):
    with pytest.raises(ConfigError, match="gamma must be in"):
        value_iteration(maze, gamma)
    with pytest.raises(ConfigError, match="gamma must be in"):
        policy_value(maze, np.zeros(len(maze.agent), int), gamma)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_agents": 2, "n_targets": 1}, "one agent and no goals"),
        ({"n_agents": 1, "n_targets": 1, "n_goals": 1}, "one agent and no goals"),
        ({"n_agents": 1, "n_targets": 4}, "states, more than max_states=200000"),
        (
            {"n_agents": 1, "n_targets": 1, "max_states": 9000},
            "9900 states, more than max_states=9000",
        ),
    ],
)
def test_worlds_that_are_not_written_out(options, message):
    with pytest.raises(ValueError, match=message):
        tabulate(grid_size=(10, 10), **options)

"""What every world of several agents must do, and the rules of each."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pettingzoo.test import parallel_api_test, parallel_seed_test

from marl_lib.config import ConfigError
from marl_lib.envs import (
    BatchedCooperativeNavigation,
    BatchedGridPredatorPrey,
    BatchedMatrixGame,
    BatchedPredatorPrey,
    BatchedReference,
    BatchedRobots,
    BatchedSpeakerListener,
    BatchedTrafficJunction,
    CooperativeNavigation,
    GridPredatorPrey,
    MatrixGame,
    PredatorPrey,
    Reference,
    Robots,
    SpeakerListener,
    TrafficJunction,
)
from marl_lib.envs.matrix import END, GAMES, joint_values
from marl_lib.envs.robots import AHEAD, FORWARD, STAY
from marl_lib.envs.traffic import BRAKE, GO, LEVELS, routes
from marl_lib.planning import random_actions
from marl_lib.rollout import play

CASES = {
    "navigation": (BatchedCooperativeNavigation, CooperativeNavigation, {"local_ratio": 0.3}),
    "navigation, continuous": (
        BatchedCooperativeNavigation,
        CooperativeNavigation,
        {"continuous": True, "n_agents": 5},
    ),
    "predators": (BatchedPredatorPrey, PredatorPrey, {"n_prey": 2}),
    "predators alone": (BatchedPredatorPrey, PredatorPrey, {"prey": "flees"}),
    "predators alone, continuous": (
        BatchedPredatorPrey,
        PredatorPrey,
        {"prey": "flees", "continuous": True},
    ),
    "speaker": (BatchedSpeakerListener, SpeakerListener, {}),
    "speaker, continuous": (BatchedSpeakerListener, SpeakerListener, {"continuous": True}),
    "reference": (BatchedReference, Reference, {}),
    "reference, continuous": (BatchedReference, Reference, {"continuous": True}),
    "traffic": (BatchedTrafficJunction, TrafficJunction, {}),
    "traffic, medium": (BatchedTrafficJunction, TrafficJunction, {"level": "medium"}),
    "traffic, hard": (BatchedTrafficJunction, TrafficJunction, {"level": "hard", "vision": 0}),
    "grid": (BatchedGridPredatorPrey, GridPredatorPrey, {}),
    "grid, together": (
        BatchedGridPredatorPrey,
        GridPredatorPrey,
        {"size": 6, "rewards": "cooperative", "vision": 2},
    ),
    "robots": (BatchedRobots, Robots, {}),
    "many robots": (BatchedRobots, Robots, {"n_agents": 4, "size": 8, "n_obstacles": 7}),
    "climbing": (BatchedMatrixGame, MatrixGame, {"game": "climbing"}),
    "two-step": (BatchedMatrixGame, MatrixGame, {}),
}
EVERY = pytest.mark.parametrize("name", CASES)


def batch(name, num_envs, autoreset=True):
    kind, _, options = CASES[name]
    return kind(num_envs, autoreset=autoreset, **options)


def actions(world, steps, seed=0):
    """Return random actions (steps, B, N[, A])."""
    world.action_space.seed(seed)
    return np.stack([world.action_space.sample() for _ in range(steps)])


@EVERY
def test_pettingzoo_accepts_it(name):
    _, face, options = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Remarks of the test on choices of ours: agents are numbers, some draw in text alone.
        warnings.filterwarnings("ignore", "Agent's action_space|.*not a string|.*render")
        parallel_api_test(face(**options), num_cycles=60)
        parallel_seed_test(lambda: face(**options), num_cycles=30)


@EVERY
def test_a_block_of_rows_is_the_batch_of_its_seed(name):
    world, alone = batch(name, 6), batch(name, 3)
    both, _ = world.reset(seed=[4, 9])
    for block, seed in enumerate((4, 9)):
        rows = slice(3 * block, 3 * block + 3)
        obs, _ = alone.reset(seed=seed)
        world.reset(seed=[4, 9])
        np.testing.assert_array_equal(obs, both[rows])
        for action in actions(world, 60):
            whole, part = world.step(action), alone.step(action[rows])
            for a, b in zip(whole[:4], part[:4], strict=True):
                np.testing.assert_array_equal(a[rows], b)


@EVERY
def test_a_restored_world_goes_on_exactly(name):
    world, other = batch(name, 4), batch(name, 4)
    world.reset(seed=3)
    given = actions(world, 50)
    for action in given[:17]:
        world.step(action)
    other.load_state_dict(world.state_dict())
    for action in given[17:]:
        for a, b in zip(world.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(a, b)


@EVERY
def test_an_episode_ends_in_time_and_its_last_observation_is_kept(name):
    world, other = batch(name, 3), batch(name, 3, autoreset=False)
    first, _ = world.reset(seed=0)
    np.testing.assert_array_equal(other.reset(seed=0)[0], first)
    for t, action in enumerate(actions(world, world.max_steps)):
        obs, _, terminated, truncated, info = world.step(action)
        expected, *_ = other.step(action)
        np.testing.assert_array_equal(info["final_obs"], expected)
        assert truncated.all() == (t + 1 == world.max_steps)
        if (terminated | truncated).any():
            break
    done = terminated | truncated
    if name != "climbing":  # which has one state
        assert np.any(obs[done] != info["final_obs"][done])
    np.testing.assert_array_equal(obs[~done], info["final_obs"][~done])


@EVERY
def test_the_hand_written_policy_is_better_than_chance(name):
    if CASES[name][2].get("prey", "agent" if "predators" in name else "") == "agent":
        pytest.skip("predators against prey: their sum says nothing")
    world = batch(name, 200)
    skilled = play(world, lambda obs, info: world.scripted(), 1)
    if hasattr(world.single_action_space, "n"):
        chance = play(world, random_actions(world), 1)
    else:
        rng = np.random.default_rng(0)
        low, high = world.action_space.low, world.action_space.high
        chance = play(world, lambda obs, info: rng.uniform(low, high).astype(np.float32), 1)
    gap = skilled.returns.mean() - chance.returns.mean()
    assert gap > 2 * np.hypot(skilled.returns.std(), chance.returns.std()) / np.sqrt(200)


@EVERY
def test_what_is_observed_is_not_touched_later(name):
    world = batch(name, 3)
    obs, _ = world.reset(seed=0)
    seen = [obs, *(world.step(a)[0] for a in actions(world, 5))]
    kept = [x.copy() for x in seen]
    for action in actions(world, 30, seed=1):
        world.step(action)
    for a, b in zip(seen, kept, strict=True):
        np.testing.assert_array_equal(a, b)


@EVERY
def test_pictures(name):
    world = batch(name, 2)
    world.reset(seed=0)
    if "climbing" in name or "two-step" in name:
        assert len(world.render_ansi().splitlines()) == world.n_actions
        return
    before = world.render_rgb(1)
    assert before.dtype == np.uint8 and before.ndim == 3 and before.std() > 5
    changed = []
    for action in actions(world, 24):
        world.step(action)
        changed.append(np.any(world.render_rgb(1) != before))
    assert any(changed)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (BatchedCooperativeNavigation, {"n_agents": 0}, "n_agents must be at least 1, got 0"),
        (BatchedCooperativeNavigation, {"local_ratio": 2.0}, "local_ratio"),
        (BatchedPredatorPrey, {"prey": "sleeps"}, "prey"),
        (BatchedPredatorPrey, {"n_obstacles": -1}, "n_obstacles must be at least 0, got -1"),
        (BatchedReference, {"max_steps": 0}, "max_steps must be at least 1, got 0"),
        (BatchedTrafficJunction, {"level": "harder"}, "level"),
        (BatchedTrafficJunction, {"rate": 0.0}, "rate"),
        (BatchedTrafficJunction, {"vision": -1}, "vision"),
        (BatchedGridPredatorPrey, {"size": 2, "n_agents": 4}, "n_agents must be at most 3"),
        (BatchedGridPredatorPrey, {"rewards": "none"}, "rewards"),
        (BatchedRobots, {"n_obstacles": 10}, "n_obstacles must be from 0 to 9"),
        (BatchedRobots, {"size": 3, "n_agents": 5, "n_obstacles": 1}, "n_agents"),
        (BatchedMatrixGame, {"game": "chess"}, "game"),
        (BatchedMatrixGame, {"scale": 0.0}, "scale"),
    ],
)
def test_what_cannot_be_is_refused(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind(1, **options)


# Particles ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_contact_moves_no_momentum(seed, n):
    """Without pushes the sum of velocities only loses its quarter: forces come in pairs."""
    world = BatchedCooperativeNavigation(8, n_agents=n)
    world.reset(seed=seed)
    rng = np.random.default_rng(seed)
    world.set_state(0.2 * rng.normal(size=(8, 2 * n, 2)), rng.normal(size=(8, n, 2)))
    before = world.velocity.sum(1)
    force = world._contact()
    assert np.abs(force).max() > 0.1  # in this crowd somebody touches somebody
    np.testing.assert_allclose(force.sum(1), 0, atol=1e-9)
    world.step(np.zeros((8, n), int))
    np.testing.assert_allclose(world.velocity.sum(1), 0.75 * before, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.permutations(range(4)))
def test_agents_of_a_team_can_be_renumbered(seed, order):
    world, other = (BatchedCooperativeNavigation(3, n_agents=4) for _ in range(2))
    world.reset(seed=seed)
    other.reset(seed=seed)
    whole = [*order, *range(4, 8)]
    other.set_state(world.position[:, whole], world.velocity[:, order])
    rng = np.random.default_rng(seed)
    for _ in range(10):
        action = rng.integers(5, size=(3, 4))
        _, reward, *_ = world.step(action)
        _, renumbered, *_ = other.step(action[:, order])
        np.testing.assert_allclose(other.position, world.position[:, whole], atol=1e-9)
        np.testing.assert_allclose(renumbered, reward[:, order], atol=1e-4)


def test_two_bodies_push_each_other_apart_along_their_line():
    world = BatchedCooperativeNavigation(1, n_agents=2)
    world.reset(seed=0)
    world.set_state([[[0, 0], [0.25, 0], [1, 1], [-1, -1]]], np.zeros((1, 2, 2)))
    force = world._contact()[0]
    np.testing.assert_allclose(force, [[-5, 0], [5, 0]], atol=1e-9)  # 100 × (0.3 - 0.25)


def test_fleeing_prey_is_the_scripted_prey():
    free, ruled = BatchedPredatorPrey(5), BatchedPredatorPrey(5, prey="flees")
    free.reset(seed=2)
    obs, _ = ruled.reset(seed=2)
    assert obs.shape == (5, 3, 16)
    for _ in range(25):
        action = free.scripted()
        np.testing.assert_array_equal(ruled.scripted(), action[:, :3])
        seen, reward, *_ = free.step(action)
        part, paid, *_ = ruled.step(action[:, :3])
        np.testing.assert_array_equal(part, seen[:, :3])
        np.testing.assert_array_equal(paid, reward[:, :3])


# Traffic ------------------------------------------------------------------------------------------


def test_routes():
    counts = {name: [len(ways) for ways in routes(level)] for name, level in LEVELS.items()}
    assert counts == {"easy": [1, 1], "medium": [3] * 4, "hard": [7] * 8}
    for name, level in LEVELS.items():
        last = level.size - 1
        for ways in routes(level):
            assert len({way[-1] for way in ways}) == len(ways)
            for way in ways:
                steps = np.abs(np.diff(way, axis=0)).sum(1)
                assert (steps == 1).all() and len(set(way)) == len(way), name
                assert {0, last} & set(way[0]) and {0, last} & set(way[-1])
    through = routes(LEVELS["medium"])[2]  # from the top, on the left lane of the road downwards
    ends = {(0, 6): {(13, 6), (6, 0), (7, 13)}}
    assert {way[-1] for way in through} == ends[through[0][0]]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(LEVELS)), st.integers(0, 2**31))
def test_cars_keep_to_their_routes_and_crashes_are_counted(level, seed):
    world = BatchedTrafficJunction(4, level=level, rate=0.5)
    world.reset(seed=seed)
    rng = np.random.default_rng(seed)
    crashed = np.zeros(4, bool)
    for _ in range(world.max_steps):
        route, place = world._route.copy(), world._place.copy()
        action = (rng.random((4, world.n_agents)) < 0.3).astype(int)
        _, reward, _, truncated, info = world.step(action)
        if truncated.any():
            break
        stay = (place >= 0) & (world._place >= 0) & (world._wait > 0)
        np.testing.assert_array_equal(
            (world._place - place)[stay], (action == GO)[stay].astype(int)
        )
        np.testing.assert_array_equal(world._route[stay], route[stay])
        cells = world._where()
        for b in range(4):
            for i in range(world.n_agents):
                shared = cells[b, i] >= 0 and (cells[b] == cells[b, i]).sum() > 1
                crashed[b] |= shared
                on = cells[b, i] >= 0
                expected = on * (-0.01 * world._wait[b, i] - 10.0 * shared)
                assert reward[b, i] == pytest.approx(expected, abs=1e-5)
        np.testing.assert_array_equal(info["episode_metrics"]["success"], 1.0 - crashed)


def test_nobody_arrives_on_top_of_another():
    world = BatchedTrafficJunction(50, level="easy", rate=1.0)
    world.reset(seed=0)
    for _ in range(19):
        world.step(np.full((50, 5), BRAKE))
    cells = world._where()
    assert (cells >= 0).sum() == 100  # one car waits at each entry
    assert world._info()["episode_metrics"]["success"].all()


# Predators on a grid ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(0, 2), st.integers(0, 2**31))
def test_what_a_predator_sees(size, vision, seed):
    world = BatchedGridPredatorPrey(3, size=size, vision=vision)
    obs, _ = world.reset(seed=seed)
    for action in actions(world, 10, seed % 1000):
        for b in range(3):
            for i, (row, column) in enumerate(world.predators[b]):
                o = obs[b, i]
                assert o[0] == ((row, column) == tuple(world.prey[b]))
                assert o[1 : 1 + size].argmax() == row
                assert o[1 + size : 1 + 2 * size].argmax() == column
                seen = o[1 + 2 * size :].reshape(2 * vision + 1, 2 * vision + 1, 3)
                for r, c in np.ndindex(seen.shape[:2]):
                    at = np.array([row + r - vision, column + c - vision])
                    others = (world.predators[b] == at).all(1).sum()
                    others -= (r, c) == (vision, vision)
                    outside = (at < 0).any() or (at >= size).any()
                    assert seen[r, c].tolist() == [others, (at == world.prey[b]).all(), outside]
        obs, *_ = world.step(action)


def test_who_has_found_the_prey_stays_and_pays_no_more():
    world = BatchedGridPredatorPrey(1, size=5, n_agents=2)
    world.reset(seed=0)
    world.predators[0], world.prey[0] = [[0, 0], [2, 2]], [0, 1]
    _, reward, terminated, *_ = world.step(np.array([[3, 4]]))
    np.testing.assert_allclose(reward, [[0, -0.05]])
    for action in ([1, 0], [1, 0], [1, 2]):  # down, and yet it stays
        assert not terminated[0]
        _, reward, terminated, _, info = world.step(np.array([action]))
        assert tuple(info["final_obs"][0, 0, :1]) == (1.0,)
    np.testing.assert_allclose(reward, [[0, 0]])
    assert terminated[0]


# Robots -------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_robots_never_share_a_cell_or_enter_an_obstacle(n, seed):
    world = BatchedRobots(5, n_agents=n, autoreset=False)
    world.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(30):
        before, heading, arrived = world.position, world.heading, world.arrived
        action = rng.choice([FORWARD, FORWARD, 1, 2, STAY], size=(5, n))
        _, reward, *_ = world.step(action)
        moved = world.position - before
        for b, i in np.ndindex(5, n):
            apart = [tuple(p) for p in world.position[b]]
            assert len(set(apart)) == n
            if moved[b, i].any():
                assert action[b, i] == FORWARD and not arrived[b, i]
                np.testing.assert_array_equal(moved[b, i], AHEAD[heading[b, i]])
            elif action[b, i] == FORWARD and not arrived[b, i]:
                at = (world.position[b, i] == world.target[b, i]).all()
                assert reward[b, i] == pytest.approx(-0.25 + 10.0 * at)
        assert not world._is_blocked(world.position).any()


def test_a_robot_sees_the_world_from_its_seat():
    world = BatchedRobots(1, n_agents=2, size=7, n_obstacles=0, view=1)
    world.reset(seed=0)
    world.position[0], world.target[0] = [[3, 3], [2, 4]], [[1, 4], [6, 6]]
    world.blocked[0, 1 + 3, 1 + 4] = True  # to the right of the cell of the first
    for heading, ahead, right in ((0, 2, 1), (1, 1, -2), (2, -2, -1), (3, -1, 2)):
        world.heading[0] = heading
        o = world._observe(slice(None))[0, 0]
        np.testing.assert_allclose(o[7:9] * 7, [ahead, right], atol=1e-6)
        mate = {0: (1, 1), 1: (1, -1), 2: (-1, -1), 3: (-1, 1)}[heading]
        np.testing.assert_allclose(o[9:11] * 7, mate, atol=1e-6)
        np.testing.assert_array_equal(o[11:15], [1, 0, 0, 0])  # both face the same way
        wall = {0: (1, 2), 1: (0, 1), 2: (1, 0), 3: (2, 1)}[heading]
        assert [tuple(at) for at in np.argwhere(o[15:].reshape(3, 3))] == [wall]


def test_two_robots_that_want_each_other_s_cell_get_nowhere():
    world = BatchedRobots(1, n_agents=3, n_obstacles=0)
    world.reset(seed=0)
    world.target[0] = [[6, 6], [6, 5], [6, 4]]
    world.position[0], world.heading[0] = [[0, 1], [0, 2], [0, 0]], [1, 3, 1]
    world.step(np.zeros((1, 3), int))  # face to face, and one close behind
    np.testing.assert_array_equal(world.position[0], [[0, 1], [0, 2], [0, 0]])
    world.heading[0] = [1, 1, 1]
    world.step(np.zeros((1, 3), int))  # in a row they move as one
    np.testing.assert_array_equal(world.position[0], [[0, 2], [0, 3], [0, 1]])


# Matrix games -------------------------------------------------------------------------------------


def test_exact_values():
    assert joint_values(GAMES["two-step"])[0].tolist() == [[7, 7], [8, 8]]
    assert joint_values(GAMES["two-step"], gamma=0.5)[0].tolist() == [[3.5, 3.5], [4, 4]]
    for name in ("climbing", "penalty"):
        np.testing.assert_array_equal(joint_values(GAMES[name]), GAMES[name].payoff)
    assert GAMES["climbing"].payoff.max() == 11 and GAMES["penalty"].payoff.max() == 10


@pytest.mark.parametrize("game", GAMES)
def test_a_game_pays_what_its_table_says(game):
    tables = GAMES[game]
    n = tables.payoff.shape[1]
    world = BatchedMatrixGame(n * n, game=game, scale=2.0)
    world.reset(seed=0)
    first, second = np.divmod(np.arange(n * n), n)
    _, reward, terminated, *_ = world.step(np.stack([first, second], 1))
    np.testing.assert_allclose(reward.sum(1), 2 * tables.payoff[0].ravel())
    np.testing.assert_array_equal(terminated, (tables.successor[0] == END).ravel())
    best = play(world, lambda obs, info: world.scripted(), 0).returns
    np.testing.assert_allclose(best, 2 * joint_values(tables)[0].max())

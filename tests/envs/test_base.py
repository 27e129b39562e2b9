"""The life of an episode, on a world so small that every number can be told in advance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from marl_lib.envs import ENVS, BatchedGridWorld, make
from marl_lib.envs.base import BatchedParallelEnv, PettingZooFace


class Countdown(BatchedParallelEnv):
    """Every row counts down from its start (drawn from 3 to 8); action 1 counts twice as fast."""

    state_arrays = ("left", "drawn")

    def __init__(self, num_envs: int, max_steps: int | None = None, autoreset: bool = True):
        super().__init__(num_envs, 2, 2, spaces.Discrete(2), max_steps, autoreset)
        self.left = np.zeros(num_envs, np.int64)
        self.drawn = np.zeros(num_envs, np.int64)

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        self.drawn[rows] = self.left[rows] = 3 + self.streams.integers(6, 1, rows)[:, 0]

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.left = self.left - 1 - action.max(1)
        return np.repeat(self.left[:, None], 2, 1).astype(np.float32), self.left <= 0

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        own = np.stack([self.left[rows], self.drawn[rows]], 1)
        return np.repeat(own[:, None], 2, 1).astype(np.float32)


def still(world: BatchedParallelEnv) -> np.ndarray:
    return np.zeros((world.num_envs, world.n_agents), np.int64)


@given(st.integers(0, 10**6), st.none() | st.integers(1, 10), st.booleans())
def test_every_episode_is_lived_to_its_end_and_no_further(seed, max_steps, autoreset):
    world = Countdown(5, max_steps, autoreset)
    obs, _ = world.reset(seed=seed)
    left, age = obs[:, 0, 0].copy(), np.zeros(5, int)
    rng = np.random.default_rng(seed)
    for _ in range(25):
        action = rng.integers(0, 2, (5, 2))
        obs, reward, terminated, truncated, info = world.step(action)
        left, age = left - 1 - action.max(1), age + 1
        np.testing.assert_array_equal(info["final_obs"][:, 1, 0], left)
        np.testing.assert_array_equal(reward, np.repeat(left[:, None], 2, 1))
        np.testing.assert_array_equal(terminated, left <= 0)
        expected = np.zeros(5, bool) if max_steps is None else age >= max_steps
        np.testing.assert_array_equal(truncated, expected)
        done = terminated | truncated
        np.testing.assert_array_equal(info["_final_obs"], done)
        if autoreset:
            left, age = np.where(done, obs[:, 0, 1], left), np.where(done, 0, age)
            assert ((obs[done] >= 3) & (obs[done] <= 8)).all()
            assert (obs[done, :, 0] == obs[done, :, 1]).all()
        np.testing.assert_array_equal(obs[:, 0, 0], left)
        np.testing.assert_array_equal(world.elapsed, age)


def test_the_last_observation_is_kept_from_the_reset():
    world = Countdown(3, max_steps=1)
    first, _ = world.reset(seed=0)
    seen = [world.step(still(world)) for _ in range(4)]
    kept = [info["final_obs"].copy() for *_, info in seen]
    world.step(still(world))
    for step, final in zip(seen, kept, strict=True):
        np.testing.assert_array_equal(step[4]["final_obs"], final)
    np.testing.assert_array_equal(kept[0][..., 0], first[..., 0] - 1)


def test_blocks_of_rows_are_batches_of_their_own():
    many = Countdown(12)
    obs, _ = many.reset(seed=[5, 6, 7])
    alone = [Countdown(4) for _ in range(3)]
    starts = [world.reset(seed=s)[0] for world, s in zip(alone, (5, 6, 7), strict=True)]
    np.testing.assert_array_equal(obs, np.concatenate(starts))
    for _ in range(30):
        obs = many.step(still(many))[0]
        parts = [world.step(still(world))[0] for world in alone]
        np.testing.assert_array_equal(obs, np.concatenate(parts))
    assert (starts[0] != starts[1]).any()


def test_seeds():
    world = Countdown(64)
    first = world.reset(seed=1)[0]
    following = world.reset()[0]
    assert (first != following).any()
    np.testing.assert_array_equal(world.reset(seed=np.int64(1))[0], first)
    np.testing.assert_array_equal(world.reset(seed=np.array([1]))[0], first)
    np.testing.assert_array_equal(world.reset(seed=None)[0], following)
    assert (Countdown(64).reset()[0] != Countdown(64).reset()[0]).any()  # from the system


@pytest.mark.parametrize("seed", [-1, 1.5, "7", True, [1, -1], [1, 2.0]])
def test_wrong_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="a seed is an integer of at least 0"):
        Countdown(2).reset(seed=seed)


@pytest.mark.parametrize("seeds", [[], [1, 2, 3]])
def test_seeds_must_share_the_rows_evenly(seeds):
    with pytest.raises(ValueError, match=f"4 environments cannot be shared by {len(seeds)} seeds"):
        Countdown(4).reset(seed=seeds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_envs must be at least 1, got 0"),
        ((1, 0), "max_steps must be at least 1 or None"),
    ],
)
def test_wrong_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Countdown(*arguments)


def test_a_step_needs_a_reset_and_a_whole_action():
    world = Countdown(3)
    with pytest.raises(RuntimeError, match=r"call reset\(\) before step\(\)"):
        world.step(still(world))
    world.reset(seed=0)
    for bad in (np.zeros((3, 1), int), np.zeros(3, int), np.zeros((2, 2), int)):
        with pytest.raises(ValueError, match=r"this batch takes \(3, 2\)"):
            world.step(bad)
    for value in (2, -1, 0.5):
        with pytest.raises(ValueError, match="actions are integers from 0 to 1"):
            world.step(np.full((3, 2), value))
    assert (world.elapsed == 0).all()
    world.step([[0, 1]] * 3)  # a list will do


@given(st.integers(0, 30), st.integers(0, 1000))
def test_a_restored_world_goes_on_exactly(before, seed):
    world, copy = Countdown(3, 6), Countdown(3, 6)
    world.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(before):
        world.step(rng.integers(0, 2, (3, 2)))
    kept = world.state_dict()
    copy.load_state_dict(kept)
    actions = rng.integers(0, 2, (20, 3, 2))
    lived = [world.step(action) for action in actions]
    late = Countdown(3, 6)
    late.load_state_dict(kept)  # untouched by what the world has done since
    for again in (copy, late):
        for action, step in zip(actions, lived, strict=True):
            for x, y in zip(again.step(action)[:4], step[:4], strict=True):
                np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError):
        Countdown(4, 6).load_state_dict(kept)


def test_spaces_hold_what_the_world_takes_and_gives():
    world = Countdown(3)
    assert world.action_space.shape == (3, 2) and world.n_actions == 2 and world.obs_dim == 2
    world.action_space.seed(0)
    obs, _ = world.reset(seed=0)
    assert world.single_observation_space.contains(obs[0, 0])
    np.testing.assert_array_equal(world.state(), obs.reshape(3, 4))
    world.step(world.action_space.sample())


def test_continuous_actions_have_bounds_for_every_agent():
    class Push(Countdown):
        def __init__(self) -> None:
            BatchedParallelEnv.__init__(self, 4, 3, 1, spaces.Box(-1.0, 2.0, (5,), np.float32), 9)

    space = Push().action_space
    assert isinstance(space, spaces.Box) and space.shape == (4, 3, 5)
    assert (space.low == -1).all() and (space.high == 2).all()
    with pytest.raises(TypeError, match="Push has continuous actions"):
        _ = Push().n_actions


def test_a_world_without_a_picture_says_so():
    with pytest.raises(NotImplementedError, match="Countdown has no picture"):
        Countdown(1).render_rgb()
    with pytest.raises(NotImplementedError, match="Countdown has no text drawing"):
        Countdown(1).render_ansi()


@pytest.mark.parametrize(("num_envs", "autoreset"), [(2, False), (1, True)])
def test_a_face_shows_one_environment(num_envs, autoreset):
    with pytest.raises(ValueError, match="a batch of one without autoreset"):
        PettingZooFace(Countdown(num_envs, autoreset=autoreset))


@pytest.mark.parametrize("name", ENVS)
def test_every_named_world_can_be_made_and_stepped(name):
    world = make(name, 4)
    obs, info = world.reset(seed=0)
    assert obs.shape == (4, world.n_agents, world.obs_dim) and obs.dtype == np.float32
    assert world.single_observation_space.contains(obs[0, 0])
    obs, reward, terminated, truncated, info = world.step(world.action_space.sample())
    assert reward.shape == (4, world.n_agents) and reward.dtype == np.float32
    assert terminated.shape == truncated.shape == (4,)
    assert terminated.dtype == truncated.dtype == bool
    assert info["final_obs"].shape == obs.shape
    assert make(name, 4, autoreset=False).autoreset is False


def test_an_unknown_world_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'GridWord' is not known; did you mean 'GridWorld'"):
        make("GridWord")


def test_memory_is_not_shared_with_the_caller():
    """What a learner has stored does not change when the world goes on, nor the other way round."""
    world = BatchedGridWorld(4, grid_size=(4, 4), max_steps=3, n_goals=1, action_masks=True)
    obs, info = world.reset(seed=0)
    rng = np.random.default_rng(0)
    mask = info["action_mask"]
    kept: list[tuple[Any, Any]] = [(obs, obs.copy()), (mask, mask.copy())]
    for _ in range(8):
        obs, reward, terminated, truncated, info = world.step(rng.integers(0, 5, (4, 2)))
        arrays = [obs, reward, terminated, truncated, info["final_obs"], info["final_mask"]]
        arrays += [info["episode_metrics"]["targets_collected"], info["action_mask"]]
        kept += [(array, array.copy()) for array in arrays]
    for array, copy in kept:
        np.testing.assert_array_equal(array, copy)
    before = world.state()
    for array, _ in kept:
        array[...] = 0
    np.testing.assert_array_equal(world.state(), before)

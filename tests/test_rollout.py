"""Playing whole episodes: nothing left out, nothing counted twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from marl_lib.envs import BatchedGridWorld, make
from marl_lib.envs.base import BatchedParallelEnv
from marl_lib.planning import Planner, random_actions
from marl_lib.rollout import Policy, play, record


class Clocks(BatchedParallelEnv):
    """Two agents; every episode of row b lasts ``lengths[b]`` steps and pays its number a step."""

    state_arrays = ("episode",)

    def __init__(self, lengths: list[int], max_steps: int | None = None, autoreset: bool = True):
        super().__init__(len(lengths), 2, 1, spaces.Discrete(2), max_steps, autoreset)
        self.lengths = np.array(lengths)
        self.episode = np.zeros(len(lengths), np.int64)

    def _start(self, rows: np.ndarray) -> None:
        self.episode[rows] += 1

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reward = np.stack([self.episode, 10 * action[:, 1]], 1).astype(np.float32)
        return reward, self.elapsed + 1 >= self.lengths

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        both = np.repeat(self.elapsed[rows][:, None, None], 2, 1)
        return both.astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"episode_metrics": {"clock": self.elapsed.copy(), "episode": self.episode.copy()}}


def ones(obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    return np.ones(obs.shape[:2], np.int64)


@pytest.mark.parametrize("autoreset", [True, False])
def test_one_episode_of_every_row_counts_and_the_whole_of_it(autoreset):
    lengths = [1, 2, 7, 1, 30]
    played = play(Clocks(lengths, autoreset=autoreset), ones, seed=0)
    assert played.lengths.tolist() == lengths
    assert played.returns.tolist() == [11 * n for n in lengths]  # the first episode's pay alone
    assert played.metrics["clock"].tolist() == lengths
    assert played.metrics["episode"].tolist() == [1] * 5


def test_truncated_episodes_count_too():
    played = play(Clocks([3, 100], max_steps=5), ones, seed=0)
    assert played.lengths.tolist() == [3, 5] and played.returns.tolist() == [33, 55]


def test_the_mean_is_not_drawn_to_short_episodes():
    """As taking the first so many episodes to finish would be."""
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(400) < 0.5, 2, 40)
    played = play(Clocks(lengths.tolist()), ones, seed=0)
    assert played.lengths.mean() == lengths.mean() > 18


def dance() -> Policy:
    """Return a policy that takes the same steps in all rows, new ones every time."""
    rng = np.random.default_rng(0)
    return lambda obs, info: np.tile(rng.integers(0, 5, obs.shape[1]), (len(obs), 1))


def test_a_batch_plays_what_its_rows_play_alone():
    options: dict[str, Any] = {"grid_size": (4, 5), "n_targets": 2, "max_steps": 25}
    world = BatchedGridWorld(30, **options)
    together = play(world, dance(), seed=8)
    slow = BatchedGridWorld(30, autoreset=False, **options)
    obs, info = slow.reset(seed=8)
    rewards, dones, policy = [], [], dance()
    for _ in range(25):
        obs, reward, terminated, truncated, info = slow.step(policy(obs, info))
        rewards.append(reward.sum(1))
        dones.append(terminated | truncated)
    ends = np.argmax(dones, axis=0)
    np.testing.assert_array_equal(together.lengths, ends + 1)
    returns = [np.sum([r[b] for r in rewards[: ends[b] + 1]]) for b in range(30)]
    np.testing.assert_allclose(together.returns, returns, rtol=1e-5)
    assert 0 < together.metrics["targets_collected"].mean() <= 1
    assert len(set(ends.tolist())) > 3
    again = play(world, dance(), seed=8)
    np.testing.assert_array_equal(together.returns, again.returns)
    assert (play(world, dance(), seed=9).returns != together.returns).any()
    halves = play(world, dance(), seed=[8, 9])
    np.testing.assert_array_equal(halves.returns[:15], together.returns[:15])


def test_every_world_that_can_be_made_can_be_played():
    for name in ("GridWorld", "CartPole-v1", "Acrobot-v1", "MountainCar-v0"):
        world = make(name, 3)
        played = play(world, random_actions(world), seed=0)
        assert played.returns.shape == played.lengths.shape == (3,)
        assert np.isfinite(played.returns).all() and world.max_steps is not None
        assert ((played.lengths >= 1) & (played.lengths <= world.max_steps)).all()


def test_a_recording_is_the_episode():
    options: dict[str, Any] = {"grid_size": (4, 5), "n_agents": 2, "n_targets": 2, "max_steps": 30}
    world = BatchedGridWorld(3, autoreset=False, **options)
    taken = record(world, Planner(world), seed=4)
    replay = BatchedGridWorld(3, autoreset=False, **options)
    replay.reset(seed=4)
    steps = len(taken.actions)
    assert len(taken.frames) == steps + 1 and taken.rewards.shape == (steps, 2)
    np.testing.assert_array_equal(taken.frames[0], replay.render_rgb(0))
    terminated = np.zeros(3, bool)
    for action, reward, frame in zip(taken.actions, taken.rewards, taken.frames[1:], strict=True):
        assert not terminated[0]
        _, paid, terminated, truncated, _ = replay.step(np.tile(action, (3, 1)))
        np.testing.assert_array_equal(paid[0], reward)
        np.testing.assert_array_equal(frame, replay.render_rgb(0))
    assert terminated[0]
    planned = BatchedGridWorld(3, **options)
    alike = play(planned, Planner(planned), seed=4)
    assert alike.lengths[0] == steps
    assert alike.returns[0] == pytest.approx(taken.rewards.sum(), rel=1e-6)


def test_a_recording_shows_how_the_episode_ended():
    world = BatchedGridWorld(1)
    with pytest.raises(ValueError, match="autoreset=False"):
        record(world, random_actions(world), seed=0)

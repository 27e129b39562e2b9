"""A team of one is the environment it wraps, with one more axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from marl_lib.config import ConfigError
from marl_lib.envs import (
    BatchedAcrobot,
    BatchedCartPole,
    BatchedMountainCar,
    ClassicConfig,
    TeamOfOne,
    make,
)
from marl_lib.envs.base import BatchedVectorEnv, PettingZooFace

WORLDS = pytest.mark.parametrize("kind", [BatchedCartPole, BatchedAcrobot, BatchedMountainCar])


class Walk(BatchedVectorEnv):
    """A walk in the plane, by continuous actions; it ends far from where it began."""

    state_arrays = ("at",)

    def __init__(self, num_envs: int, autoreset: bool = True):
        space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        actions = spaces.Box(-1.0, 1.0, (2,), np.float32)
        super().__init__(num_envs, space, actions, 40, autoreset)
        self.at = np.zeros((num_envs, 2))

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        self.at[rows] = self.streams.uniform(2, rows)

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.at = self.at + action
        return self.at.sum(1).astype(np.float32), np.abs(self.at).max(1) > 3

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        return self.at[rows].astype(np.float32)


def joint(env: BatchedVectorEnv, rng: np.random.Generator) -> np.ndarray:
    """Return a random action of the whole batch."""
    space = env.single_action_space
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, env.num_envs)
    return rng.uniform(-1, 1, (env.num_envs, *space.shape)).astype(np.float32)


@pytest.mark.parametrize("kind", [BatchedCartPole, BatchedAcrobot, BatchedMountainCar, Walk])
@pytest.mark.parametrize("autoreset", [True, False])
def test_a_team_of_one_is_what_it_wraps(kind, autoreset):
    options: dict[str, Any] = {} if kind is Walk else {"max_steps": 40}
    plain, team = kind(6, autoreset=autoreset, **options), kind(6, autoreset=autoreset, **options)
    team = TeamOfOne(team)
    assert (team.n_agents, team.num_envs, team.max_steps) == (1, 6, 40)
    assert team.single_observation_space == plain.single_observation_space
    assert team.single_action_space == plain.single_action_space
    rng, ends = np.random.default_rng(0), 0
    obs, _ = plain.reset(seed=[3, 4])
    team_obs, _ = team.reset(seed=[3, 4])
    np.testing.assert_array_equal(team_obs, obs[:, None])
    for _ in range(90):
        action = joint(plain, rng)
        obs, reward, terminated, truncated, info = plain.step(action)
        team_step = team.step(action[:, None])
        np.testing.assert_array_equal(team_step[0], obs[:, None])
        np.testing.assert_array_equal(team_step[1], reward[:, None])
        np.testing.assert_array_equal(team_step[2], terminated)
        np.testing.assert_array_equal(team_step[3], truncated)
        assert team_step[4].keys() == info.keys()
        np.testing.assert_array_equal(team_step[4]["final_obs"], info["final_obs"][:, None])
        np.testing.assert_array_equal(team_step[4]["_final_obs"], info["_final_obs"])
        np.testing.assert_array_equal(team.elapsed, plain.elapsed)
        np.testing.assert_array_equal(team.state(), obs)
        ends += (terminated | truncated).sum()
    assert ends >= 6


@WORLDS
def test_a_restored_team_goes_on_exactly(kind):
    physics: dict[str, Any] = {BatchedCartPole: {"length": (0.3, 0.9)}}.get(kind, {})
    teams = [TeamOfOne(kind(4, max_steps=15, physics=physics)) for _ in range(2)]
    first, second = teams
    first.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(9):
        first.step(joint(first.env, rng)[:, None])
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(first.elapsed, second.elapsed)
    for _ in range(30):
        action = joint(first.env, rng)[:, None]
        for x, y in zip(first.step(action)[:4], second.step(action)[:4], strict=True):
            np.testing.assert_array_equal(x, y)


def test_wrong_actions_are_refused():
    team = make("CartPole-v1", 3)
    team.reset(seed=0)
    with pytest.raises(ValueError, match=r"action has shape \(3,\), this batch takes \(3, 1\)"):
        team.step(np.zeros(3, int))
    with pytest.raises(ValueError, match="actions are integers from 0 to 1"):
        team.step(np.full((3, 1), 2))
    with pytest.raises(RuntimeError, match="reset"):
        make("CartPole-v1", 3).step(np.zeros((3, 1), int))


def test_a_team_of_one_has_a_picture_and_a_pettingzoo_face():
    env = BatchedCartPole(1, autoreset=False)
    face = PettingZooFace(TeamOfOne(env), render_mode="rgb_array")
    with pytest.raises(RuntimeError, match="reset"):
        face.render()
    observations, _ = face.reset(seed=1)
    assert list(observations) == [0] and observations[0].shape == (4,)
    np.testing.assert_array_equal(face.render(), env.render_rgb())
    steps = 0
    while face.agents:
        _, rewards, terminated, _, _ = face.step({0: 1})
        steps += 1
    assert terminated == {0: True} and rewards == {0: 1.0} and 5 < steps < 15


def test_make_takes_a_mapping_and_refuses_what_is_not_an_option():
    assert make("GridWorld", 2, {"n_agents": 4}).n_agents == 4
    with pytest.raises(ConfigError, match="n_agnets.*n_agents"):
        make("GridWorld", 2, {"n_agnets": 4})
    with pytest.raises(ConfigError, match="options must be"):
        make("GridWorld", 2, ClassicConfig())

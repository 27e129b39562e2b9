"""What wraps a world: teams of one, hidden entries, histories, worlds of other packages."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from marl_lib.config import ConfigError
from marl_lib.envs import (
    BatchedAcrobot,
    BatchedCartPole,
    BatchedMountainCar,
    ClassicConfig,
    GymnasiumBatch,
    History,
    PettingZooBatch,
    TeamOfOne,
    make,
)
from marl_lib.envs.base import BatchedParallelEnv, BatchedVectorEnv, PettingZooFace
from marl_lib.planning import random_actions
from marl_lib.rollout import play
from marl_lib.seeding import RandomStreams

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


# Hidden entries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "shown"),
    [
        ("CartPole-v1", BatchedCartPole, [0, 2]),
        ("Acrobot-v1", BatchedAcrobot, [0, 1, 2, 3]),
        ("MountainCar-v0", BatchedMountainCar, [0]),
    ],
)
def test_velocities_are_hidden_in_every_observation(name, kind, shown):
    options = {"velocities": False, "max_steps": 30}
    plain, blind = kind(5, max_steps=30), make(name, 5, options)
    assert blind.obs_dim == len(shown) and blind.tokens is None
    space = blind.single_observation_space
    np.testing.assert_array_equal(space.high, plain.single_observation_space.high[shown])
    rng, ends = np.random.default_rng(0), 0
    obs, seen = plain.reset(seed=1)[0], blind.reset(seed=1)[0]
    np.testing.assert_array_equal(seen, obs[:, None, shown])
    for _ in range(70):
        action = joint(plain, rng)
        obs, reward, terminated, truncated, info = plain.step(action)
        step = blind.step(action[:, None])
        np.testing.assert_array_equal(step[0], obs[:, None, shown])
        np.testing.assert_array_equal(step[1], reward[:, None])
        np.testing.assert_array_equal(step[4]["final_obs"], info["final_obs"][:, None, shown])
        np.testing.assert_array_equal(blind.state(), obs[:, shown])
        ends += (terminated | truncated).sum()
    assert ends >= 5


# Histories ----------------------------------------------------------------------------------------


class Remembering:
    """What the last observations of one agent must look like: a list, nothing else."""

    def __init__(self, length: int):
        self.length, self.seen = length, []

    def push(self, obs: np.ndarray) -> list[float]:
        self.seen.append(obs.tolist())
        last = self.seen[-self.length :]
        empty = [0.0] * (1 + len(obs)) * (self.length - len(last))
        return empty + [x for o in last for x in [1.0, *o]]


def test_tokens_of_a_history():
    world = History(make("CartPole-v1", 2), 3)
    assert (world.tokens.count, world.tokens.size, world.tokens.ordered) == (3, 4, True)
    assert world.obs_dim == 3 * 5 and world.n_agents == 1
    obs, _ = world.reset(seed=0)
    assert obs.shape == (2, 1, 15) and obs.dtype == np.float32
    tokens = obs[:, 0].reshape(2, 3, 5)
    np.testing.assert_array_equal(tokens[:, :, 0], [[0, 0, 1]] * 2)  # the newest is the last
    np.testing.assert_array_equal(tokens[:, :2], 0)
    assert (tokens[:, 2, 1:] != 0).all()


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("autoreset", [True, False])
def test_a_history_is_the_last_observations_oldest_first(length, autoreset):
    plain = make("CartPole-v1", 6, {"max_steps": 25}, autoreset)
    world = History(make("CartPole-v1", 6, {"max_steps": 25}, autoreset), length)
    rng, ends = np.random.default_rng(0), 0
    memory = [Remembering(length) for _ in range(6)]
    obs, seen = plain.reset(seed=[1, 2])[0], world.reset(seed=[1, 2])[0]
    expected = [m.push(o[0]) for m, o in zip(memory, obs, strict=True)]
    np.testing.assert_array_equal(seen[:, 0], np.float32(expected))
    for _ in range(60):
        action = rng.integers(2, size=(6, 1))
        obs, reward, terminated, truncated, info = plain.step(action)
        step = world.step(action)
        # the end of an episode is remembered together with what came before it ...
        final = [m.push(o[0]) for m, o in zip(memory, info["final_obs"], strict=True)]
        np.testing.assert_array_equal(step[4]["final_obs"][:, 0], np.float32(final))
        done = terminated | truncated
        if autoreset:  # ... and the next one begins with an empty memory
            for b in np.flatnonzero(done):
                memory[b] = Remembering(length)
                final[b] = memory[b].push(obs[b, 0])
        np.testing.assert_array_equal(step[0][:, 0], np.float32(final))
        np.testing.assert_array_equal(step[1], reward)
        np.testing.assert_array_equal(step[2], terminated)
        np.testing.assert_array_equal(step[3], truncated)
        np.testing.assert_array_equal(world.elapsed, plain.elapsed)
        ends += done.sum()
    assert ends >= 12
    again, _ = world.reset()
    flags = again[:, 0].reshape(6, length, 5)[..., 0]
    np.testing.assert_array_equal(flags, [[0.0] * (length - 1) + [1.0]] * 6)


def test_what_was_observed_stays_as_it_was():
    world = History(make("CartPole-v1", 3), 2)
    first, _ = world.reset(seed=0)
    kept = first.copy()
    _, _, _, _, info = world.step(np.zeros((3, 1), int))
    final = info["final_obs"].copy()
    world.step(np.ones((3, 1), int))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(info["final_obs"], final)


def test_a_restored_history_goes_on_exactly():
    first, second = (History(make("CartPole-v1", 4, {"max_steps": 9}), 3) for _ in range(2))
    first.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(11):
        first.step(rng.integers(2, size=(4, 1)))
    state = first.state_dict()
    second.load_state_dict(state)
    kept = state["kept"].copy()
    for _ in range(30):
        action = rng.integers(2, size=(4, 1))
        for x, y in zip(first.step(action)[:4], second.step(action)[:4], strict=True):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(state["kept"], kept)  # a state stays as it was


def test_a_history_of_a_team_keeps_its_agents_apart():
    plain, world = make("GridWorld", 3), History(make("GridWorld", 3), 2)
    obs, seen = plain.reset(seed=0)[0], world.reset(seed=0)[0]
    n, d = plain.n_agents, plain.obs_dim
    action = np.random.default_rng(0).integers(5, size=(3, n))
    after, seen = plain.step(action)[0], world.step(action)[0]
    tokens = seen.reshape(3, n, 2, 1 + d)
    np.testing.assert_array_equal(tokens[..., 0], 1)
    np.testing.assert_array_equal(tokens[:, :, 0, 1:], obs)
    np.testing.assert_array_equal(tokens[:, :, 1, 1:], after)
    assert world.render_rgb(1).shape == plain.render_rgb(1).shape


def test_what_cannot_be_remembered_is_refused():
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        History(make("CartPole-v1", 1), 0)
    with pytest.raises(ConfigError, match="history must be at least 1, got 0"):
        make("CartPole-v1", 1, {"history": 0})
    with pytest.raises(RuntimeError, match="reset"):
        History(make("CartPole-v1", 1), 2).step(np.zeros((1, 1), int))


def test_make_with_options():
    world = make("CartPole-v1", 4, {"velocities": False, "history": 5, "max_steps": 7})
    assert isinstance(world, History) and world.obs_dim == 5 * 3 and world.max_steps == 7
    assert world.tokens.count == 5 and world.tokens.size == 2
    assert not isinstance(make("CartPole-v1", 4, {"history": 1}), History)
    heavy = make("CartPole-v1", 64, {"physics": {"masspole": (0.2, 0.4), "gravity": 12.0}})
    light = make("CartPole-v1", 64)
    for env in (heavy, light):
        env.reset(seed=0)
    assert not np.array_equal(
        heavy.step(np.ones((64, 1), int))[0], light.step(np.ones((64, 1), int))[0]
    )
    with pytest.raises(ConfigError, match=r"velocites.*velocities"):
        make("CartPole-v1", 1, {"velocites": False})
    with pytest.raises(ConfigError, match="max_steps must be at least 1"):
        make("CartPole-v1", 1, {"max_steps": 0})


# Worlds of gymnasium ------------------------------------------------------------------------------


def seeds_of(seed: int, num_envs: int) -> list[int]:
    """Return the seeds that gymnasium's environments are given, in their order."""
    return RandomStreams([seed], num_envs, "world").integers(2**31, 1)[:, 0].tolist()


@pytest.mark.parametrize("autoreset", [True, False])
@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
def test_a_batch_of_gymnasium_is_its_environments(name, autoreset):
    batch = make(f"gymnasium:{name}", 3, autoreset=autoreset)
    singles = [gymnasium.make(name) for _ in range(3)]
    assert isinstance(batch, GymnasiumBatch) and batch.n_agents == 1
    assert batch.max_steps == singles[0].spec.max_episode_steps
    assert batch.single_observation_space == singles[0].observation_space
    obs, _ = batch.reset(seed=3)
    own = [e.reset(seed=s)[0] for e, s in zip(singles, seeds_of(3, 3), strict=True)]
    np.testing.assert_array_equal(obs[:, 0], np.float32(own))
    rng, ends = np.random.default_rng(0), 0
    for _ in range(205 if name == "Pendulum-v1" and autoreset else 60):
        action = np.stack([random_action(batch, rng) for _ in range(3)])
        obs, reward, terminated, truncated, info = batch.step(action)
        for b, env in enumerate(singles):
            seen, paid, ended, cut, _ = env.step(action[b, 0])
            np.testing.assert_array_equal(info["final_obs"][b, 0], np.float32(seen))
            assert reward[b, 0] == np.float32(paid) and info["_final_obs"][b] == (ended or cut)
            assert (terminated[b], truncated[b]) == (ended, cut)
            if ended or cut:
                ends += 1
                if autoreset:
                    seen = env.reset()[0]
            np.testing.assert_array_equal(obs[b, 0], np.float32(seen))
        if ends and not autoreset:
            break
    assert obs.dtype == reward.dtype == np.float32 and reward.shape == (3, 1)
    assert ends >= 1 or (name == "Pendulum-v1" and not autoreset)


def random_action(env: BatchedParallelEnv, rng: np.random.Generator) -> np.ndarray:
    """Return an action of one row, (1,) or (1, A)."""
    space = env.single_action_space
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, 1)
    return rng.uniform(space.low, space.high, (1, *space.shape)).astype(np.float32)


def test_seeds_of_a_batch_of_gymnasium():
    batch = make("gymnasium:Pendulum-v1", 4)
    first, _ = batch.reset(seed=[1, 2])
    assert len(np.unique(first[:, 0], axis=0)) == 4
    halves = [make("gymnasium:Pendulum-v1", 2).reset(seed=s)[0] for s in (1, 2)]
    np.testing.assert_array_equal(first, np.concatenate(halves))
    other, _ = batch.reset()  # goes on
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(batch.reset(seed=[1, 2])[0], first)


def test_a_resumed_batch_of_gymnasium_starts_anew_with_the_same_streams():
    first, second, third = (make("gymnasium:Pendulum-v1", 2) for _ in range(3))
    first.reset(seed=0)
    second.load_state_dict(first.state_dict())
    third.load_state_dict(first.state_dict())
    action = np.zeros((2, 1, 1), np.float32)
    np.testing.assert_array_equal(second.step(action)[0], third.step(action)[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Pendulum-v9", "gymnasium cannot make 'Pendulum-v9'"),
        ("NoSuchWorld", "gymnasium cannot make 'NoSuchWorld'"),
        ("FrozenLake-v1", r"observations must be a Box of one axis, got Discrete\(16\)"),
    ],
)
def test_worlds_of_gymnasium_that_cannot_be_had(name, message):
    with pytest.raises(ConfigError, match=message):
        make(f"gymnasium:{name}", 1)


def test_a_batch_of_gymnasium_refuses_what_it_cannot_do():
    batch = make("gymnasium:Pendulum-v1", 2)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2, 1\), this batch takes \(2, 1, 1\)"):
        batch.step(np.zeros((2, 1), np.float32))
    with pytest.raises(NotImplementedError, match="not drawn"):
        batch.render_rgb()
    with pytest.raises(ConfigError, match="not known"):
        make("gymnasium:Pendulum-v1", 1, {"max_steps": 3})
    with pytest.raises(ConfigError, match="environment 'Pendulum-v1' is not known"):
        make("Pendulum-v1", 1)


# PettingZoo ---------------------------------------------------------------------------------------


class Relay(ParallelEnv):
    """Agent "a" leaves after two steps, "b" after four; "b" has fewer actions and sees less."""

    metadata = {"name": "relay"}
    possible_agents = ["a", "b"]

    def observation_space(self, agent):
        return spaces.Box(-9, 9, (3,) if agent == "a" else (2,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(4 if agent == "a" else 3)

    def reset(self, seed=None, options=None):
        self.agents, self.t, self.seed = ["a", "b"], 0, seed
        return self._seen(), {a: {} for a in self.agents}

    def _seen(self):
        return {
            a: np.full(self.observation_space(a).shape, self.t, np.float32) for a in self.agents
        }

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.t += 1
        agents, seen = self.agents, self._seen()
        over = {a: self.t == (2 if a == "a" else 4) for a in agents}
        self.agents = [a for a in agents if not over[a]]
        forbids = {a: {"action_mask": np.array([1, 0, 1])} if a == "b" else {} for a in agents}
        paid = {a: float(actions[a]) for a in agents}
        return seen, paid, over, dict.fromkeys(agents, False), forbids


@pytest.mark.parametrize("autoreset", [True, False])
def test_a_team_of_different_agents_is_filled_up_and_masked(autoreset):
    world = PettingZooBatch(Relay, 2, autoreset)
    assert (world.n_agents, world.obs_dim, world.n_actions) == (2, 3, 4)
    obs, info = world.reset(seed=0)
    assert world.envs[0].seed != world.envs[1].seed
    np.testing.assert_array_equal(info["action_mask"][1], [[1, 1, 1, 1], [1, 1, 1, 0]])
    for t in range(1, 5):
        obs, reward, terminated, truncated, info = world.step(np.array([[3, 2], [0, 1]]))
        alive = t <= 2
        np.testing.assert_array_equal(reward, [[3 * alive, 2], [0, 1]])
        final = info["final_obs"][0]
        np.testing.assert_array_equal(final, [[t * alive] * 3, [t, t, 0]])
        assert terminated.all() == (t == 4) and not truncated.any()
        np.testing.assert_array_equal(info["final_mask"][0, 1], [1, 0, 1, 0])
    if autoreset:
        assert not obs.any()  # the next episode's first
        np.testing.assert_array_equal(info["action_mask"][0, 1], [1, 1, 1, 0])


def test_mpe2_through_the_adapter_is_our_own_world():
    theirs = make("pettingzoo:mpe2.simple_spread_v3", 3)
    ours = make("CooperativeNavigation", 3, {"local_ratio": 0.5})
    seen, _ = theirs.reset(seed=4)
    ours.reset(seed=0)
    worlds = [env.aec_env.unwrapped.world for env in theirs.envs]
    place = [[body.state.p_pos for body in world.entities] for world in worlds]
    np.testing.assert_allclose(ours.set_state(place, np.zeros((3, 3, 2))), seen, atol=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(25):
        action = rng.integers(5, size=(3, 3))
        expected = theirs.step(action)
        found = ours.step(action)
        np.testing.assert_allclose(found[4]["final_obs"], expected[4]["final_obs"], atol=1e-5)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
        np.testing.assert_array_equal(found[3], expected[3])
    assert expected[3].all()


def test_level_based_foraging_through_the_adapters():
    world = make("gymnasium-team:lbforaging:Foraging-5x5-2p-1f-v3", 4)
    assert (world.n_agents, world.obs_dim, world.n_actions) == (2, 9, 6)
    obs, _ = world.reset(seed=1)
    again, _ = make("gymnasium-team:lbforaging:Foraging-5x5-2p-1f-v3", 4).reset(seed=1)
    np.testing.assert_array_equal(obs, again)
    episodes = play(world, random_actions(world), 0)
    assert episodes.lengths.max() <= 50 and 0 < episodes.returns.mean() <= 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pettingzoo:mpe2.no_such_thing", "is no module with a parallel_env"),
        ("pettingzoo:json", "is no module with a parallel_env"),
        ("gymnasium-team:CartPole-v1", "the actions of a team are a Tuple"),
    ],
)
def test_what_is_no_team_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        make(name)

"""The classic control worlds: equal to gymnasium's, and faithful as batches."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from marl_lib.envs.classic import (
    Acrobot,
    BatchedAcrobot,
    BatchedCartPole,
    BatchedMountainCar,
    CartPole,
    MountainCar,
)
from marl_lib.envs.draw import PALETTE

WORLDS = {
    "CartPole-v1": BatchedCartPole,
    "Acrobot-v1": BatchedAcrobot,
    "MountainCar-v0": BatchedMountainCar,
}
FACES = {"CartPole-v1": CartPole, "Acrobot-v1": Acrobot, "MountainCar-v0": MountainCar}
EVERY_WORLD = pytest.mark.parametrize("name", WORLDS)

# A quantity that is drawn anew for every episode, one for each world.
DRAWN = {
    "CartPole-v1": {"length": (0.3, 0.9), "masspole": (0.05, 0.3)},
    "Acrobot-v1": {"link_mass_2": (0.5, 1.5), "torque_noise_max": 0.3},
    "MountainCar-v0": {"force": (0.0008, 0.0014)},
}


def skilled(name: str, state: np.ndarray) -> np.ndarray:
    """Return actions that balance the pole, swing up, climb the hill; ``state`` is (B, D)."""
    if name == "CartPole-v1":
        return (state @ [0.1, 0.2, 1.0, 0.5] > 0).astype(int)
    return np.where(state[:, -1] > 0, 2, 0)


def random_actions(world: VectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    """Return actions (steps, B)."""
    n = world.single_action_space.n
    return np.random.default_rng(seed).integers(0, n, (steps, world.num_envs))


def peers(name: str, world: VectorEnv, number: int) -> list[gymnasium.Env]:
    """Return gymnasium's environments, each started where the world's row stands."""
    envs = [gymnasium.make(name, disable_env_checker=True) for _ in range(number)]
    for i, env in enumerate(envs):
        restart(env, world, i)
    return envs


def restart(env: gymnasium.Env, world: VectorEnv, row: int) -> None:
    env.reset(seed=row)
    env.unwrapped.state = world.get_state()[row]
    for attribute, value in gymnasium_names(world, row).items():
        assert hasattr(env.unwrapped, attribute)
        setattr(env.unwrapped, attribute, value)


def gymnasium_names(world: VectorEnv, row: int) -> dict[str, object]:
    """Return the physics of a row under the names that gymnasium's environment reads."""
    p = {name: float(value[row]) for name, value in world.get_physics().items()}
    if isinstance(world, BatchedCartPole):
        derived = {"total_mass": p["masspole"] + p["masscart"]}
        return {**p, **derived, "polemass_length": p["masspole"] * p["length"]}
    if isinstance(world, BatchedAcrobot):
        assert p.pop("gravity") == 9.8  # a literal in gymnasium's equations
        torque = p.pop("torque")
        own_case = {key if key in ("dt", "torque_noise_max") else key.upper(): p[key] for key in p}
        return {**own_case, "AVAIL_TORQUE": [-torque, 0.0, torque]}
    return p


def compare(name: str, world: VectorEnv, steps: int, atol: float = 1e-6) -> dict[str, int]:
    """Play beside gymnasium's environments, row 0 with skill, and return how episodes ended."""
    world.reset(seed=3)
    envs = peers(name, world, world.num_envs)
    shape = (steps, world.num_envs)
    obs = np.zeros((2, *shape, world.single_observation_space.shape[0]), np.float32)
    state = np.zeros((2, *shape, len(world.start_low)))
    outcome = np.zeros((2, *shape, 3))
    for t, action in enumerate(random_actions(world, steps)):
        action[0] = skilled(name, world.get_state()[:1])[0]
        _, reward, terminated, truncated, info = world.step(action)
        outcome[0, t] = np.stack([reward, terminated, truncated], axis=1)
        obs[0, t] = info["final_obs"]
        state[:, t] = world.get_state()
        for i, env in enumerate(envs):
            obs[1, t, i], *outcome[1, t, i], _ = env.step(action[i])
            if info["_final_obs"][i]:
                restart(env, world, i)
            else:
                state[1, t, i] = env.unwrapped.state
    np.testing.assert_array_equal(outcome[0], outcome[1])
    np.testing.assert_allclose(obs[0], obs[1], rtol=0, atol=atol)
    np.testing.assert_allclose(state[0], state[1], rtol=0, atol=atol)
    return {"terminated": outcome[0, ..., 1].sum(), "truncated": outcome[0, ..., 2].sum()}


@EVERY_WORLD
def test_equals_gymnasium_over_ten_thousand_steps(name):
    ends = compare(name, WORLDS[name](3), 10_000)
    assert ends["terminated"] > 20 and ends["truncated"] > 5


@EVERY_WORLD
def test_each_row_equals_gymnasium_with_that_physics(name):
    physics = {
        "CartPole-v1": {
            "gravity": [5.0, 9.8, 15.0],
            "masscart": (0.5, 2.0),
            "masspole": (0.05, 0.5),
            "length": np.array([0.3, 0.5, 1.2]),
            "force_mag": (5.0, 15.0),
            "tau": 0.015,
        },
        "Acrobot-v1": {
            "link_length_1": (0.8, 1.3),
            "link_mass_1": [0.7, 1.0, 1.9],
            "link_mass_2": (0.5, 1.5),
            "link_com_pos_1": (0.3, 0.7),
            "link_com_pos_2": 0.45,
            "link_moi": (0.8, 1.2),
            "max_vel_1": 2.5,
            "max_vel_2": [4.0, 5.0, 6.0],
            "torque": (1.0, 2.0),
            "dt": 0.15,
        },
        "MountainCar-v0": {
            "force": (0.0008, 0.002),
            "gravity": [0.002, 0.0025, 0.003],
            "max_speed": (0.02, 0.07),
        },
    }[name]
    world = WORLDS[name](3, physics=physics)
    ends = compare(name, world, 2_000)
    assert sum(ends.values()) > 3


def test_torque_noise_is_gymnasiums_given_the_same_numbers():
    world = BatchedAcrobot(2, physics={"torque_noise_max": [0.5, 0.9]})
    world.reset(seed=1)
    envs = peers("Acrobot-v1", world, 2)
    told = np.zeros(2)
    for i, env in enumerate(envs):
        env.unwrapped._np_random = SimpleNamespace(
            uniform=lambda low, high, i=i: low + (high - low) * told[i]
        )
    twin = BatchedAcrobot(2)
    twin.reset(seed=1)
    for action in random_actions(world, 300):
        twin.streams.load_state_dict(world.streams.state_dict())
        told[:] = twin.streams.uniform(1)[:, 0]
        obs, *_ = world.step(action)
        for i, env in enumerate(envs):
            np.testing.assert_allclose(obs[i], env.step(action[i])[0], rtol=0, atol=1e-6)


def test_gravity_of_the_acrobot_scales_with_time():
    # Gymnasium holds gravity fixed, so compare with ourselves: four times the forces and half the
    # time step are the same motion at twice the speed.
    plain = BatchedAcrobot(4)
    fast = BatchedAcrobot(
        4,
        physics={
            "gravity": 4 * 9.8,
            "torque": 4.0,
            "dt": 0.1,
            "max_vel_1": 8 * np.pi,
            "max_vel_2": 18 * np.pi,
        },
    )
    plain.reset(seed=0)
    fast.reset(seed=0)
    fast.set_state(plain.get_state() * [1, 1, 2, 2])
    for action in random_actions(plain, 300):
        plain.step(action)
        fast.step(action)
        np.testing.assert_allclose(fast.get_state(), plain.get_state() * [1, 1, 2, 2], atol=1e-9)


@EVERY_WORLD
def test_passes_gymnasiums_checker(name):
    gymnasium.register(f"test/{name}", entry_point=FACES[name])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_env(gymnasium.make(f"test/{name}").unwrapped)
            check_env(gymnasium.make(f"test/{name}", render_mode="rgb_array").unwrapped)
    finally:
        gymnasium.registry.pop(f"test/{name}")
    # CartPole's velocities know no bound, in gymnasium neither.
    allowed = "infinity" if name == "CartPole-v1" else "no warning at all"
    assert [w for w in caught if allowed not in str(w.message)] == []


@EVERY_WORLD
def test_spaces_are_gymnasiums(name):
    ours, theirs = FACES[name](), gymnasium.make(name)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    batch = WORLDS[name](5)
    assert isinstance(batch, VectorEnv)
    assert batch.observation_space.shape == (5, *theirs.observation_space.shape)


def test_observation_space_widens_with_the_physics():
    car = BatchedMountainCar(2, physics={"max_speed": (0.03, 0.09)})
    assert car.single_observation_space.high[1] == np.float32(0.09)
    acrobot = BatchedAcrobot(2, physics={"max_vel_1": [1.0, 2.0]})
    assert acrobot.single_observation_space.high[4] == np.float32(2.0)


@EVERY_WORLD
def test_time_runs_out_exactly_and_the_last_observation_is_kept(name):
    world = WORLDS[name](3, max_steps=7)
    free = WORLDS[name](3, max_steps=7, autoreset=False)
    world.reset(seed=2)
    free.reset(seed=2)
    for t, action in enumerate(random_actions(world, 7), start=1):
        obs, _, terminated, truncated, info = world.step(action)
        expected, *_ = free.step(action)
        np.testing.assert_array_equal(info["final_obs"], expected)
        assert not terminated.any()
        assert (truncated == (t == 7)).all()
        assert (info["_final_obs"] == truncated).all()
        if t < 7:
            np.testing.assert_array_equal(obs, expected)
    assert (np.abs(obs - expected).max(axis=1) > 0).all()
    start = world.get_state()
    assert (start >= world.start_low).all() and (start <= world.start_high).all()
    assert (world.elapsed == 0).all()


def test_rows_end_and_start_on_their_own():
    world = BatchedCartPole(3, max_steps=40)
    world.reset(seed=0)
    world.set_state([[0, 0, 0.2, 2.0], [0, 0, 0, 0], [2.39, 3.0, 0, 0]])
    before = world.get_state()
    obs, reward, terminated, truncated, info = world.step(np.array([1, 1, 1]))
    assert terminated.tolist() == [True, False, True]
    assert not truncated.any()
    assert reward.tolist() == [1, 1, 1]
    assert info["final_obs"][0, 2] > world.max_angle and info["final_obs"][2, 0] > 2.4
    assert np.abs(obs[[0, 2]]).max() <= 0.05
    np.testing.assert_array_equal(obs[1], info["final_obs"][1])
    assert world.elapsed.tolist() == [0, 1, 0]
    assert (world.get_state()[1] != before[1]).any()


def test_the_flag_is_reached_forwards_only():
    world = BatchedMountainCar(2)
    world.reset(seed=0)
    world.set_state([[0.55, -0.03], [0.49, 0.03]])
    *_, terminated, _, info = world.step(np.array([1, 1]))
    assert (info["final_obs"][:, 0] > 0.5).all()
    assert terminated.tolist() == [False, True]


def test_an_episode_can_end_in_both_ways_at_once():
    world = BatchedMountainCar(1, max_steps=1)
    world.reset(seed=0)
    world.set_state([[0.499, 0.05]])
    *_, terminated, truncated, _ = world.step(np.array([2]))
    assert terminated[0] and truncated[0]


@EVERY_WORLD
def test_a_row_knows_nothing_of_the_batch_around_it(name):
    worlds = [WORLDS[name](n, max_steps=60, physics=DRAWN[name]) for n in (1, 3, 8)]
    starts = [w.reset(seed=11)[0] for w in worlds]
    np.testing.assert_array_equal(starts[0], starts[2][:1])
    np.testing.assert_array_equal(starts[1], starts[2][:3])
    for action in random_actions(worlds[2], 200):
        obs = [w.step(action[: w.num_envs])[0] for w in worlds]
        np.testing.assert_array_equal(obs[0], obs[2][:1])
        np.testing.assert_array_equal(obs[1], obs[2][:3])


@EVERY_WORLD
def test_a_block_of_rows_is_a_batch_of_its_seed(name):
    both = WORLDS[name](8, max_steps=60, physics=DRAWN[name])
    alone = [WORLDS[name](4, max_steps=60, physics=DRAWN[name]) for _ in range(2)]
    obs, _ = both.reset(seed=[5, 9])
    parts = [world.reset(seed=s)[0] for world, s in zip(alone, (5, 9), strict=True)]
    np.testing.assert_array_equal(obs, np.concatenate(parts))
    for action in random_actions(both, 200):
        obs, *_ = both.step(action)
        parts = [w.step(action[4 * i : 4 * i + 4])[0] for i, w in enumerate(alone)]
        np.testing.assert_array_equal(obs, np.concatenate(parts))


@EVERY_WORLD
def test_a_seed_fixes_the_trajectory(name):
    def play(seed):
        world = WORLDS[name](4, max_steps=30, physics=DRAWN[name])
        first, _ = world.reset(seed=seed)
        return np.stack([first, *(world.step(a)[0] for a in random_actions(world, 100))])

    np.testing.assert_array_equal(play(1), play(1))
    assert (play(1)[0] != play(2)[0]).any(axis=1).all()


@EVERY_WORLD
def test_reset_without_a_seed_goes_on(name):
    world = WORLDS[name](4)
    first, _ = world.reset(seed=1)
    second, _ = world.reset()
    assert (first != second).any(axis=1).all()


@EVERY_WORLD
def test_resumes_as_if_never_interrupted(name):
    world = WORLDS[name](4, max_steps=30, physics=DRAWN[name])
    world.reset(seed=1)
    actions = random_actions(world, 140)
    for action in actions[:50]:
        world.step(action)
    saved = world.state_dict()
    expected = [world.step(action) for action in actions[50:]]
    resumed = WORLDS[name](4, max_steps=30, physics=DRAWN[name])
    resumed.load_state_dict(saved)
    for action, (obs, reward, terminated, truncated, _) in zip(actions[50:], expected, strict=True):
        got = resumed.step(action)
        np.testing.assert_array_equal(got[0], obs)
        np.testing.assert_array_equal(got[1], reward)
        np.testing.assert_array_equal(got[2], terminated)
        np.testing.assert_array_equal(got[3], truncated)
    np.testing.assert_array_equal(resumed.get_state(), world.get_state())


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        ({"masspol": 0.2}, "no physics named 'masspol'; choose from gravity, masscart, masspole"),
        ({"masspole": -0.1}, "masspole is a finite number above 0, got -0.1"),
        ({"length": 0.0}, "length is a finite number above 0"),
        ({"gravity": -1.0}, "gravity is a finite number of at least 0"),
        ({"tau": np.nan}, "tau is a finite number"),
        ({"tau": "fast"}, "tau is a finite number above 0, got 'fast'"),
        ({"length": (0.9, 0.3)}, "low > high"),
        ({"length": (0.3, np.inf)}, "length is a finite number"),
        ({"length": (0.3, 0.5, 0.9)}, r"length is a number, a tuple \(low, high\) or an array"),
        ({"length": np.ones(3)}, r"array of shape \(4,\)"),
        ({"length": np.ones((4, 1))}, r"array of shape \(4,\)"),
        ({"length": [0.5, 0.5, -0.5, 0.5]}, "length is a finite number above 0"),
    ],
)
def test_impossible_physics_is_refused(physics, message):
    with pytest.raises(ValueError, match=message):
        BatchedCartPole(4, physics=physics)


@EVERY_WORLD
def test_physics_is_drawn_for_each_episode_of_each_row(name):
    quantity, (low, high) = next(iter(DRAWN[name].items()))
    world = WORLDS[name](2_000, max_steps=2, physics={quantity: (low, high)})
    world.reset(seed=0)
    first = world.get_physics()[quantity]
    still = np.zeros(2_000, int)
    world.step(still)
    np.testing.assert_array_equal(world.get_physics()[quantity], first)
    world.step(still)
    second = world.get_physics()[quantity]
    for drawn in (first, second):
        assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    others = {k: v for k, v in world.get_physics().items() if k != quantity}
    assert all((v == world.quantities[k].default).all() for k, v in others.items())


def test_drawn_quantities_and_starts_are_independent():
    physics = {"length": (0.3, 0.9), "masspole": (0.05, 0.3)}
    world = BatchedCartPole(2_000, physics=physics)
    world.reset(seed=0)
    drawn = [world.get_physics()[name] for name in physics]
    correlation = np.corrcoef([*drawn, *world.get_state().T])
    assert np.abs(correlation - np.eye(6)).max() < 0.1


@EVERY_WORLD
def test_episodes_start_as_gymnasiums_do(name):
    world = WORLDS[name](4_000)
    world.reset(seed=0)
    ours = world.get_state()
    env = gymnasium.make(name).unwrapped
    theirs = []
    for seed in range(1_000):
        env.reset(seed=seed)
        theirs.append(np.array(env.state))
    for mine, reference in zip(ours.T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(mine, reference).pvalue > 1e-3
    low, high = np.array(world.start_low), np.array(world.start_high)
    assert (ours >= low).all() and (ours <= high).all()
    assert (np.ptp(ours, axis=0) >= 0.99 * (high - low)).all()
    moving = np.ptp(ours, axis=0) > 0
    correlation = np.corrcoef(ours[:, moving].T)
    assert np.abs(np.atleast_2d(correlation) - np.eye(moving.sum())).max() < 0.1


@EVERY_WORLD
def test_worlds_can_be_placed(name):
    world = WORLDS[name](4)
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        world.set_state(np.zeros((4, len(world.start_low))))
    world.reset(seed=0)
    before = world.get_state()
    placed = np.full((2, before.shape[1]), 0.01)
    obs = world.set_state(placed, rows=[2, 0])
    np.testing.assert_array_equal(world.get_state()[[0, 2]], placed)
    np.testing.assert_array_equal(world.get_state()[[1, 3]], before[[1, 3]])
    assert obs.shape == (2, *world.single_observation_space.shape)
    world.get_state()[:] = 7  # a copy: writing to it moves nothing
    np.testing.assert_array_equal(world.get_state()[[0, 2]], placed)
    with pytest.raises(ValueError, match="these rows take"):
        world.set_state(placed)
    with pytest.raises(ValueError, match="finite"):
        world.set_state(placed * np.nan, rows=[2, 0])


@EVERY_WORLD
@pytest.mark.parametrize("action", [[0, 1], [0, 1, 9, 0], [0, -1, 0, 0], [0.0, 1.0, 0.0, 0.0]])
def test_wrong_actions_are_refused(name, action):
    world = WORLDS[name](4)
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        world.step(np.zeros(4, int))
    world.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        world.step(np.array(action))


@EVERY_WORLD
@settings(max_examples=15)
@given(seed=st.integers(0, 2**63 - 1), num_envs=st.integers(1, 6), data=st.data())
def test_invariants_under_random_play(name, seed, num_envs, data):
    max_steps = data.draw(st.integers(1, 40))
    world = WORLDS[name](num_envs, max_steps=max_steps, physics=DRAWN[name])
    obs, _ = world.reset(seed=seed)
    length = np.zeros(num_envs, int)
    for action in random_actions(world, 80, seed):
        assert obs.dtype == np.float32 and obs in world.observation_space
        obs, reward, terminated, truncated, info = world.step(action)
        done = terminated | truncated
        length += 1
        assert (truncated == (length >= max_steps)).all()
        length[done] = 0
        assert (world.elapsed == length).all()
        assert info["final_obs"] in world.observation_space
        np.testing.assert_array_equal(obs[~done], info["final_obs"][~done])
        assert np.isfinite(world.get_state()).all()
        if name == "CartPole-v1":
            x, angle = info["final_obs"][:, 0], info["final_obs"][:, 2]
            assert (reward == 1).all()
            assert (terminated == ((np.abs(x) > 2.4) | (np.abs(angle) > np.pi / 15))).all()
        elif name == "Acrobot-v1":
            assert (reward == np.where(terminated, 0, -1)).all()
            assert (np.abs(world.get_state()[:, :2]) <= np.pi).all()
            circles = (info["final_obs"][:, :4] ** 2).reshape(-1, 2, 2).sum(axis=2)
            np.testing.assert_allclose(circles, 1, atol=1e-6)
        else:
            assert (reward == -1).all()
            assert (terminated == (info["final_obs"][:, 0] >= 0.5)).all()


def test_the_face_is_the_batch_of_one():
    face = CartPole(max_steps=5, physics={"length": 0.7})
    world = BatchedCartPole(1, max_steps=5, physics={"length": 0.7})
    obs, info = face.reset(seed=4)
    np.testing.assert_array_equal(obs, world.reset(seed=4)[0][0])
    for t in range(1, 6):
        obs, reward, terminated, truncated, info = face.step(t % 2)
        expected = world.step(np.array([t % 2]))
        np.testing.assert_array_equal(obs, expected[4]["final_obs"][0])
        assert (reward, terminated, truncated) == (1.0, False, t == 5)
    assert face.render() is None
    with pytest.raises(ValueError, match="rgb_array"):
        CartPole(render_mode="human")


def centre_of(picture: np.ndarray, colour: str) -> np.ndarray:
    """Return the mean (x, y) of the pixels of one colour."""
    rows, columns = np.nonzero((picture == PALETTE[colour]).all(axis=-1))
    return np.array([columns.mean(), rows.mean()])


def picture_of(world: VectorEnv, state: list[float]) -> np.ndarray:
    world.set_state([state], rows=[1])
    picture = world.render_rgb(1)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    return picture


def test_picture_of_the_cart():
    world = BatchedCartPole(2, physics={"length": [0.5, 0.8]})
    world.reset(seed=0)
    for x in (-2.0, 0.0, 1.5):
        cart = centre_of(picture_of(world, [x, 0, 0, 0]), "blue")
        assert cart[0] == pytest.approx(180 + 60 * x, abs=1)
        leaning = picture_of(world, [x, 0, 0.2, 0])
        assert centre_of(leaning, "orange")[0] > cart[0] + 5
    orange = (picture_of(world, [0, 0, 0, 0]) == PALETTE["orange"]).all(axis=-1)
    assert np.ptp(np.nonzero(orange.any(axis=1))[0]) == pytest.approx(2 * 0.8 * 60 + 9, abs=6)


def test_picture_of_the_acrobot_shows_the_goal():
    world = BatchedAcrobot(2)
    world.reset(seed=0)
    goal = centre_of(picture_of(world, [0, 0, 0, 0]), "green")[1]
    rng = np.random.default_rng(0)
    seen = set()
    for angles in rng.uniform(-np.pi, np.pi, (40, 2)):
        height = -np.cos(angles[0]) - np.cos(angles.sum())
        tip = centre_of(picture_of(world, [*angles, 0, 0]), "black")
        assert goal - tip[1] == pytest.approx(66 * (height - 1), abs=1.5)
        seen.add(bool(height > 1))
    assert seen == {True, False}


def test_picture_of_the_mountain_car():
    world = BatchedMountainCar(2)
    world.reset(seed=0)
    flag = centre_of(picture_of(world, [-0.5, 0]), "vermilion")
    cars = [centre_of(picture_of(world, [x, 0]), "blue") for x in (-0.5, 0.0, 0.4, 0.5)]
    assert (np.diff(cars, axis=0)[:, 0] > 0).all()
    assert (np.diff(cars, axis=0)[:, 1] < 0).all()
    assert abs(cars[-1][0] - flag[0]) < 12 < abs(cars[-2][0] - flag[0])

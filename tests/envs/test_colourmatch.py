"""The colour-match world, held against its rules written out once more for a single world."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from marl_lib.config import ConfigError
from marl_lib.envs import BatchedColourMatch, ColourMatch, ColourMatchConfig, make
from marl_lib.envs.colourmatch import COLOURS, INK, PAPER
from marl_lib.rollout import play

UP, DOWN, LEFT, RIGHT, STAY = range(5)
STEPS = {UP: (0, 0.2), DOWN: (0, -0.2), LEFT: (-0.2, 0), RIGHT: (0.2, 0), STAY: (0, 0)}


def tokens_of(obs: np.ndarray, world: BatchedColourMatch) -> np.ndarray:
    """Return observations (..., D) as tokens with their flags, (..., count, 1 + size)."""
    return obs.reshape(*obs.shape[:-1], world.tokens.count, 1 + world.tokens.size)


class Rules:
    """One world with plain numbers, begun from what its first observation shows."""

    def __init__(self, tokens: np.ndarray, max_steps: int):
        self.max_steps, self.time = max_steps, 0
        own = tokens[0]
        self.x, self.y = float(own[2]), float(own[3])
        self.colour = own[4:].tolist()
        self.entities: list[tuple[float, float, list[float]] | None] = [
            (self.x + float(t[2]), self.y + float(t[3]), t[4:].tolist()) if t[0] else None
            for t in tokens[1:]
        ]

    def goal(self) -> int:
        fits = [i for i, e in enumerate(self.entities) if e is not None and e[2] == self.colour]
        assert len(fits) == 1, "one entity, and no other, is of the agent's colour"
        return fits[0]

    def distance(self) -> float:
        entity = self.entities[self.goal()]
        assert entity is not None
        return math.hypot(entity[0] - self.x, entity[1] - self.y)

    def step(self, action: int) -> tuple[float, bool, bool]:
        before = self.distance()
        right, up = STEPS[action]
        self.x = min(1.0, max(-1.0, self.x + right))
        self.y = min(1.0, max(-1.0, self.y + up))
        self.time += 1
        near = self.distance()
        found = near <= 0.2
        return before - near + (1 if found else 0), found, self.time >= self.max_steps

    def obs(self) -> list[float]:
        out = [1.0, 1.0, self.x, self.y, *self.colour]
        for entity in self.entities:
            if entity is None:
                out += [0.0] * (4 + len(self.colour))
            else:
                out += [1.0, 0.0, entity[0] - self.x, entity[1] - self.y, *entity[2]]
        return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"entities": (1, 1), "colours": 1, "max_steps": 5},
        {"entities": (3, 4), "colours": 7, "max_steps": 12},
        {"entities": (7, 7)},
    ],
)
def test_rules(options: dict[str, Any]) -> None:
    world, rng, ends = BatchedColourMatch(12, **options), np.random.default_rng(0), []
    obs, info = world.reset(seed=[5, 6, 7])
    slow = [Rules(t, world.config.max_steps) for t in tokens_of(obs, world)]
    for _ in range(80):
        action = rng.integers(5, size=12)
        straight = rng.random(12) < 0.5  # random steps alone hardly ever find anything
        action = np.where(straight, world.scripted(), action)
        relevant = [1 + rules.goal() for rules in slow]
        np.testing.assert_array_equal(info["relevant"], relevant)
        obs, reward, terminated, truncated, info = world.step(action)
        for b, rules in enumerate(slow):
            expected = rules.step(int(action[b]))
            assert reward[b] == pytest.approx(expected[0], abs=1e-5)
            assert (terminated[b], truncated[b]) == expected[1:]
            np.testing.assert_allclose(info["final_obs"][b], rules.obs(), atol=1e-5)
            assert info["episode_metrics"]["found"][b] == expected[1]
            if any(expected[1:]):
                assert rules.time == slow[b].time
                slow[b] = Rules(tokens_of(obs[b], world), world.config.max_steps)
                ends.append(expected[1:])
            np.testing.assert_allclose(obs[b], slow[b].obs(), atol=1e-5)
        done = terminated | truncated
        np.testing.assert_array_equal(info["_final_obs"], done)
        np.testing.assert_array_equal(obs[~done], info["final_obs"][~done])
    assert {(True, False), (False, True)} <= set(ends) or options.get("max_steps") == 5
    assert len(ends) > 30


def test_a_row_alone_is_the_row_in_a_batch() -> None:
    batch, rng = BatchedColourMatch(6), np.random.default_rng(1)
    rows = [BatchedColourMatch(3) for _ in range(2)]
    obs, _ = batch.reset(seed=[3, 8])
    alone = [world.reset(seed=seed)[0] for world, seed in zip(rows, (3, 8), strict=True)]
    np.testing.assert_array_equal(obs, np.concatenate(alone))
    for _ in range(50):
        action = rng.integers(5, size=6)
        step = batch.step(action)
        parts = [world.step(a) for world, a in zip(rows, action.reshape(2, 3), strict=True)]
        for i in range(4):
            np.testing.assert_array_equal(step[i], np.concatenate([p[i] for p in parts]))
        for name in ("final_obs", "_final_obs", "relevant"):
            np.testing.assert_array_equal(
                step[4][name], np.concatenate([p[4][name] for p in parts])
            )
    single, first = ColourMatch(), BatchedColourMatch(1)
    np.testing.assert_array_equal(single.reset(seed=3)[0], first.reset(seed=3)[0][0])
    np.testing.assert_array_equal(first.reset(seed=3)[0][0], obs_of(3))


def obs_of(seed: int) -> np.ndarray:
    return BatchedColourMatch(2).reset(seed=seed)[0][0]


def test_seeds() -> None:
    assert np.array_equal(obs_of(0), obs_of(0)) and not np.array_equal(obs_of(0), obs_of(1))
    world = BatchedColourMatch(4)
    first = world.reset(seed=0)[0].copy()
    assert not np.array_equal(world.reset()[0], first)  # goes on with the streams
    assert np.array_equal(world.reset(seed=0)[0], first)
    assert len(np.unique(first, axis=0)) == 4


@pytest.fixture(scope="module")
def many() -> tuple[BatchedColourMatch, np.ndarray, np.ndarray]:
    world = BatchedColourMatch(6_000)
    obs, info = world.reset(seed=2)
    return world, tokens_of(obs, world), info["relevant"]


def test_what_a_token_says(many: tuple[BatchedColourMatch, np.ndarray, np.ndarray]) -> None:
    _, tokens, _ = many
    assert tokens.shape == (6_000, 8, 11)
    present, is_agent, colour = tokens[..., 0], tokens[..., 1], tokens[..., 4:]
    assert set(np.unique(present)) == {0.0, 1.0} and (present[:, 0] == 1).all()
    assert (is_agent[:, 0] == 1).all() and (is_agent[:, 1:] == 0).all()
    assert set(np.unique(colour)) == {0.0, 1.0}
    np.testing.assert_array_equal(colour.sum(-1), present)  # one-hot where there is something
    assert (tokens[present == 0] == 0).all()
    assert (np.abs(tokens[:, 0, 2:4]) <= 1).all() and (np.abs(tokens[..., 2:4]) <= 2).all()
    there = tokens[:, 1:, 2:4] + tokens[:, :1, 2:4]
    assert (np.abs(there[present[:, 1:] == 1]) <= 1).all()


def test_one_entity_is_of_the_agents_colour_and_it_is_the_relevant_one(many) -> None:
    _, tokens, relevant = many
    entities = tokens[:, 1:, 4:]
    assert entities.sum(1).max() == 1  # no two entities share a colour
    same = (entities * tokens[:, :1, 4:]).sum(-1)  # (B, slots)
    np.testing.assert_array_equal(same.sum(1), 1)
    np.testing.assert_array_equal(1 + same.argmax(1), relevant)


def test_counts_slots_and_colours_are_drawn_evenly(many) -> None:
    _, tokens, relevant = many
    count = tokens[:, 1:, 0].sum(1).astype(int)
    shares = np.bincount(count, minlength=8) / len(count)
    assert shares[:2].sum() == 0
    np.testing.assert_allclose(shares[2:], 1 / 6, atol=0.02)
    np.testing.assert_allclose(np.bincount(relevant, minlength=8)[1:] / 6_000, 1 / 7, atol=0.02)
    np.testing.assert_allclose(tokens[:, 0, 4:].mean(0), 1 / 7, atol=0.02)
    two = tokens[count == 2, 1:, 0]  # which slots are filled is drawn too
    np.testing.assert_allclose(two.mean(0), 2 / 7, atol=0.05)
    assert set(map(tuple, two.astype(int))) >= {(1, 0, 0, 0, 0, 0, 1), (0, 1, 1, 0, 0, 0, 0)}


def test_the_order_is_another_in_the_next_episode_and_the_same_within_one() -> None:
    world = BatchedColourMatch(200, entities=(7, 7), max_steps=4)
    obs, _ = world.reset(seed=0)
    first = tokens_of(obs, world)[:, 1:, 4:]
    still = np.ones(200, bool)  # in the first episode
    for _ in range(3):
        obs, _, terminated, _, _ = world.step(np.full(200, STAY))
        still &= ~terminated
        np.testing.assert_array_equal(tokens_of(obs, world)[still, 1:, 4:], first[still])
    obs, _, _, truncated, _ = world.step(np.full(200, STAY))
    np.testing.assert_array_equal(truncated[still], True)
    assert still.mean() > 0.9
    assert (tokens_of(obs, world)[:, 1:, 4:] != first).any((1, 2)).mean() > 0.99


def test_final_obs_is_the_end_of_the_old_episode() -> None:
    world = BatchedColourMatch(300)
    obs, info = world.reset(seed=4)
    relevant, rows = info["relevant"], np.arange(300)
    for _ in range(25):
        colours = tokens_of(obs, world)[..., 4:]
        obs, _, terminated, truncated, info = world.step(world.scripted())
        final = tokens_of(info["final_obs"], world)
        np.testing.assert_array_equal(final[..., 4:], colours)
        away = np.linalg.norm(final[rows, relevant, 2:4], axis=-1)
        assert (away[terminated] <= 0.2 + 1e-6).all() and (away[~terminated] > 0.2 - 1e-6).all()
        ended = terminated | truncated
        assert not (obs[ended] == info["final_obs"][ended]).all(1).any()
        relevant = info["relevant"]  # of the observation that is returned
        fits = (tokens_of(obs, world)[rows, relevant, 4:] * tokens_of(obs, world)[:, 0, 4:]).sum(1)
        np.testing.assert_array_equal(fits, 1)


@pytest.mark.parametrize("max_steps", [1, 6, 20])
def test_time_runs_out(max_steps: int) -> None:
    world = BatchedColourMatch(50, max_steps=max_steps, autoreset=False)
    world.reset(seed=0)
    ended = np.zeros(50, bool)
    for t in range(1, max_steps + 1):
        _, _, terminated, truncated, _ = world.step(np.full(50, STAY))
        np.testing.assert_array_equal(truncated, np.full(50, t == max_steps))
        ended |= terminated
    assert ended.mean() < 0.1  # who stays finds something only where it started beside it


def test_straight_always_finds_and_earns_the_way_and_one() -> None:
    world = make("ColourMatch", 3_000)
    raw = world.env
    world.reset(seed=7)
    start = raw._distance().copy()
    seen = play(world, lambda obs, info: world.scripted(), seed=7)
    assert (seen.metrics["found"] == 1).all()
    # what is earned is the way made good, and 1 for the find
    assert (np.abs(seen.returns - (start + 1)) <= 0.2 + 1e-4).all()
    assert seen.lengths.max() <= 20 and 5 < seen.lengths.mean() < 7
    chance = np.random.default_rng(0)
    lost = play(world, lambda obs, info: chance.integers(5, size=(3_000, 1)), seed=7)
    assert lost.metrics["found"].mean() < 0.2


def test_a_restored_world_goes_on_exactly() -> None:
    first, second = BatchedColourMatch(5, max_steps=7), BatchedColourMatch(5, max_steps=7)
    first.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(10):
        first.step(rng.integers(5, size=5))
    second.load_state_dict(first.state_dict())
    for _ in range(30):
        action = rng.integers(5, size=5)
        a, b = first.step(action), second.step(action)
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(a[4]["relevant"], b[4]["relevant"])


def test_gymnasium_accepts_it() -> None:
    gymnasium.register("test/ColourMatch", ColourMatch, max_episode_steps=None)
    try:
        check_env(gymnasium.make("test/ColourMatch").unwrapped)
        check_env(gymnasium.make("test/ColourMatch", render_mode="rgb_array").unwrapped)
    finally:
        gymnasium.registry.pop("test/ColourMatch")
    small = ColourMatch(entities=(1, 3))
    assert small.observation_space.shape == (4 * 11,) and small.action_space.n == 5


def test_the_picture_shows_where_everything_is() -> None:
    world = BatchedColourMatch(2, entities=(3, 3))
    world.reset(seed=1)
    world._agent[0], world._colour[0] = (0.0, -0.8), 2
    world._position[0] = [(-0.8, 0.8), (0.8, 0.8), (0.0, 0.0)]
    world._kind[0], world._present[0], world._goal[0] = (4, 2, 6), (True, True, False), 1
    picture = world.render_rgb(0)
    assert picture.shape == (240, 240, 3) and picture.dtype == np.uint8

    def at(x: float, y: float) -> tuple[int, ...]:
        return tuple(picture[round(120 - 105 * y), round(120 + 105 * x)].tolist())

    assert at(-0.8, 0.8) == COLOURS[4] and at(0.8, 0.8) == COLOURS[2]
    assert at(0.0, -0.8) == COLOURS[2] and at(0.0, -0.69) == INK  # the agent, and its rim
    assert at(0.0, 0.0) == PAPER  # no entity in the third slot
    world.step(np.full(2, UP))
    assert not np.array_equal(world.render_rgb(0), picture)
    face = ColourMatch(render_mode="rgb_array")
    face.reset(seed=0)
    assert face.render().shape == (240, 240, 3) and ColourMatch().render() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entities": (0, 3)}, r"entities must be \(least, most\) with 1 <= least, got \(0, 3\)"),
        ({"entities": (4, 3)}, r"entities must be"),
        ({"entities": (2, 5), "colours": 4}, "colours must be at least the most entities, 5"),
        ({"colours": 8}, "at most 7, got 8"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ColourMatchConfig(**options)
    with pytest.raises(ConfigError, match=message):
        BatchedColourMatch(1, **options)


def test_wrong_actions_are_refused() -> None:
    world = BatchedColourMatch(3)
    with pytest.raises(RuntimeError, match="reset"):
        world.step(np.zeros(3, int))
    world.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\), this batch takes \(3,\)"):
        world.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="integers from 0 to 4"):
        world.step(np.full(3, 5))
    with pytest.raises(ConfigError, match="entitis.*entities"):
        make("ColourMatch", 1, {"entitis": (2, 3)})

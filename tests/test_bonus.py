"""The bonus for what is new: what it pays, to whom, and that nothing else sees it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import LEARNERS, OFF_POLICY, Play, learner, same

from marl_lib.config import ConfigError
from marl_lib.exploration.bonus import CountBonus, NoBonus
from marl_lib.runs import make_trainer, run_config
from marl_lib.spec import Spec

COUNT = {"kind": "count", "scale": 0.5, "bits": 8}


def bonus(seeds: tuple[int, ...] = (0,), agents: int = 1, obs_dim: int = 3, **settings: Any) -> Any:
    return CountBonus(**settings).build(Spec(obs_dim, 2, agents), seeds)


def seen(*rows: Any) -> np.ndarray:
    """Return observations (B, N, D)."""
    return np.array(rows, np.float32)


FAR, AWAY = [9.0, -7.0, 5.0], [-9.0, 7.0, -5.0]


def test_it_pays_scale_over_the_root_of_the_count() -> None:
    counts = bonus(scale=0.3)
    paid = [counts.reward({}, seen([FAR])).item() for _ in range(5)]
    assert paid == pytest.approx([0.3 / n**0.5 for n in range(1, 6)])
    assert counts.reward({}, seen([AWAY])).item() == pytest.approx(0.3)  # which is of another kind
    near = [[x * 1.0001 for x in FAR]]
    assert counts.reward({}, seen(near)).item() == pytest.approx(0.3 / 6**0.5)


def test_environments_of_a_replicate_count_together() -> None:
    paid = bonus().reward({}, seen([FAR], [FAR], [AWAY]))
    assert paid.dtype == np.float32
    np.testing.assert_allclose(paid, 0.1 / np.sqrt([[2], [2], [1]]), rtol=1e-6)


def test_agents_and_replicates_count_for_themselves() -> None:
    counts = bonus((0, 3), agents=2, scale=1.0)
    first = counts.reward({}, seen([FAR, AWAY], [AWAY, FAR]))  # one environment each
    np.testing.assert_allclose(first, np.ones((2, 2)))
    then = counts.reward({}, seen([FAR, FAR], [FAR, FAR]))
    np.testing.assert_allclose(then, [[0.5**0.5, 1.0], [1.0, 0.5**0.5]], rtol=1e-6)


def test_a_replicate_counts_as_it_would_alone() -> None:
    rng = np.random.default_rng(0)
    both, alone = bonus((5, 2), bits=6), bonus((2,), bits=6)
    for _ in range(20):
        obs = rng.normal(size=(8, 1, 3)).astype(np.float32)
        np.testing.assert_array_equal(both.reward({}, obs)[4:], alone.reward({}, obs[4:]))


@pytest.mark.parametrize("bits", [1, 4, 10])
def test_kinds_are_the_signs_of_projections(bits: int) -> None:
    """As many kinds as there are patterns of signs; observations nearby mostly share theirs."""
    rng, counts = np.random.default_rng(0), bonus(bits=bits, scale=1.0)
    obs = 3 * rng.normal(size=(2000, 1, 3))
    counts.reward({}, obs.astype(np.float32))
    kinds = (counts.table > 0).sum()
    assert 1 < kinds <= 2**bits and counts.table.sum() == 2000
    weight, shift = counts.projection[0, :, :-1], counts.projection[0, :, -1]
    patterns = np.unique(obs[:, 0] @ weight.T + shift > 0, axis=0)
    assert kinds == len(patterns)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bits": 25}, "bits must be from 1 to 24, got 25"),
        ({"bits": 0}, "bits must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be positive, got 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CountBonus(**given)


def test_by_name_and_by_default_none() -> None:
    assert learner("dqn").config.bonus == NoBonus() and learner("dqn").bonus is None
    assert learner("ppo", bonus="count").config.bonus == CountBonus()
    assert "bonus" not in learner("dqn").state_dict()


# In learners --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_learns_from_both_rewards(name: str) -> None:
    """What is stored is what the world paid and what the bonus pays for where the step led to."""
    made = learner(name, bonus=COUNT)
    apart = made.config.bonus.build(made.spec, made.seeds)
    play, rewards = Play(made), []
    step = play.world.step

    def watched(action: np.ndarray) -> Any:
        found = step(action)
        rewards.append(found[1] + apart.reward({}, found[4]["final_obs"]))
        return found

    play.world.step = watched  # type: ignore[method-assign]
    for _ in range(4):
        play.step()
    expected = np.stack(rewards)  # (T, R × B, N)
    if name in OFF_POLICY:
        stored = made.replay.data["reward"][:4]
        if stored.shape[-1] == 1:  # what the team gets
            expected = expected.sum(-1, keepdims=True)
    else:
        stored = made.data["reward"].transpose(0, 1).flatten(1, 2)
    np.testing.assert_allclose(stored, expected, rtol=1e-6)
    play(9)
    assert play.figures and all(np.isfinite(x).all() for x in play.figures.values())


@pytest.mark.parametrize("name", ["qmix", "pqn", "mappo", "maddpg", "sac"])
def test_counts_are_kept_with_the_learner(name: str) -> None:
    play = Play(learner(name, bonus=COUNT))(6)
    file = io.BytesIO()
    torch.save(play.learner.state_dict(), file)
    file.seek(0)
    other = Play(learner(name, bonus=COUNT))
    other.learner.load_state_dict(torch.load(file, weights_only=True))
    other.world.load_state_dict(play.world.state_dict())
    other.obs, other.info = play.obs, play.info
    for each in (play, other):
        each(5)
    assert play.learner.bonus.table.sum() == 2 * 2 * 4 * 11  # replicates, agents, envs, steps
    assert same(play.learner.state_dict(), other.learner.state_dict())


def test_evaluation_sees_the_world_s_rewards_alone() -> None:
    """The two-step game pays 0, 1, 7 or 8, whatever the learner pays itself."""
    config = run_config(
        {"env": "MatrixGame", "algorithm": "vdn", "timesteps": 200, "eval_every": 50},
        {"num_envs": 4, "eval_episodes": 3, "final_episodes": 3, "replicates": 2},
        {"vdn": {"bonus": {"kind": "count", "scale": 1000.0}, "learning_starts": 20}},
    )
    trainer = make_trainer(config, progress=False)
    result = trainer.train()
    assert trainer.learner.replay.data["reward"].max() > 100  # type: ignore[attr-defined]
    returns = [result.final["episode_return"].ravel(), *result.curve.values["episode_return"]]
    assert np.concatenate(returns).max() <= 8.0

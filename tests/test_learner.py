"""What all learners share: what they refuse, what is kept of them, how they are looked into."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from algorithms.cases import (
    AGENTS,
    BOX,
    CONTINUOUS,
    ENCODERS,
    LEARNERS,
    MASKED,
    OBS,
    ON_POLICY,
    Play,
    learner,
    networks,
    same,
    scatter,
)

from marl_lib.config import ConfigError
from marl_lib.runs import ALGORITHMS
from marl_lib.spec import Spec

every = pytest.mark.parametrize("name", LEARNERS)
NAN = float("nan")
IMPOSSIBLE: dict[str, tuple[Any, ...]] = {
    "gamma": (1.01, -0.1, NAN), "learning_rate": (0.0, -1.0), "max_grad_norm": (0.0, -1.0),
    "batch_size": (0,), "encoder": ("rnn", {"hidden": (64, 0)}), "bonus": ("novelty",),
    "buffer_size": (0,), "learning_starts": (-1,), "train_every": (0,), "target_every": (0,),
    "tau": (0.0, 1.5), "sequence_length": (0,), "burn_in": (-1, 16), "rollout": (0,),
    "epochs": (0,), "n_step": (0,), "epsilon_start": (1.5,), "epsilon_end": (-0.1,),
    "epsilon_steps": (-1,), "mixer": ("vdn",), "mixer_width": (0,), "hyper_width": (0,),
    "weighting": ("none",), "lam": (-0.1,), "critic": ("centra",), "gae_lambda": (1.1,),
    "clip_ratio": (0.0,), "clip_value": (-0.2,), "entropy_coef": (-1.0,), "target_kl": (0.0,),
    "critic_learning_rate": (0.0,), "alpha_learning_rate": (0.0,), "noise_start": (-0.1,),
    "noise_end": (-0.1,), "noise_steps": (-1,), "temperature": (0.0,), "actor_penalty": (-1.0,),
    "target_entropy": (float("inf"),), "share_parameters": ("yes",), "anneal": (2,),
}  # fmt: skip


# What they refuse ---------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_impossible_settings_are_refused_by_name(algorithm: str) -> None:
    config = ALGORITHMS[algorithm][1]
    keys = {f.name for f in dataclasses.fields(config)} & IMPOSSIBLE.keys()
    assert len(keys) > 10
    for key in keys:
        for value in IMPOSSIBLE[key]:
            with pytest.raises(ConfigError, match=key):
                config(**{key: value})


def test_every_setting_that_can_be_impossible_is_tried() -> None:
    """So that a new one is not forgotten; the others are switches, and ``alpha``s of their own."""
    fields = {f.name for _, config in ALGORITHMS.values() for f in dataclasses.fields(config)}
    switches = {
        "double", "dueling", "normalise_reward", "normalise_obs", "normalise_value",
        "normalise_advantage", "team_reward", "learn_alpha", "alpha",
    }  # fmt: skip
    assert fields - IMPOSSIBLE.keys() == switches


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("dqn", {"spec": CONTINUOUS}, "DQN needs discrete actions, those here are continuous"),
        ("wqmix", {"spec": CONTINUOUS}, "WQMIX needs discrete actions"),
        ("pqn", {"spec": CONTINUOUS}, "PQN needs discrete actions"),
        ("sac", {"spec": MASKED}, "SAC needs continuous actions, those here are discrete"),
        (
            "ppo",
            {"spec": dataclasses.replace(CONTINUOUS, action_masks=True)},
            "action_masks must be false for continuous actions",
        ),
        ("sac", {"spec": Spec(OBS, 1, 1, (BOX[0] - np.inf, BOX[1]))}, "bounds must be finite"),
        ("maddpg", {"spec": Spec(OBS, 2, 1, BOX[::-1])}, "bounds must be .* in order"),
        ("dqn", {"buffer_size": 3}, "buffer_size must be at least 4 here, got 3"),
        ("dqn", {"buffer_size": 11, "n_step": 3}, "buffer_size must be at least 12 here, got 11"),
        ("qmix", {"encoder": "gru", "buffer_size": 15}, "buffer_size must be at least 16 here"),
        ("qmix", {"encoder": "lstm", "n_step": 2}, "n_step must be 1 with a memory, got 2"),
        ("maddpg", {"burn_in": 4}, "burn_in must be less than sequence_length, 4, got 4"),
        ("pqn", {"sequence_length": 3}, "sequence_length must be a divisor of rollout, 4, got 3"),
        ("ppo", {"batch_size": 1}, "batch_size must be at least 2, got 1"),
    ],
)
def test_what_does_not_go_together_is_refused(
    name: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        learner(name, given.pop("encoder", "mlp"), **given)


def test_the_shortest_buffer_can_be_drawn_from() -> None:
    """Without the rule a run with a short buffer would end well, having learned nothing."""
    for name, encoder, given in (
        ("dqn", "mlp", {"buffer_size": 12, "n_step": 3}),
        ("qmix", "gru", {"buffer_size": 16}),
    ):
        assert Play(learner(name, encoder, **given))(8).learner.updates > 0


# What is learned from -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dqn", "ippo"])
def test_each_network_learns_from_its_own_mean(name: str) -> None:
    """So a rate of learning means the same for one network for all and for one each."""
    x = torch.arange(6.0).view(3, 1, 2)  # (batch, T, N)
    assert learner(name).mean(x) == 2.5
    assert learner(name, share_parameters=False).mean(x) == 2.0 + 3.0
    alone = dataclasses.replace(LEARNERS[name][1], n_agents=1)
    assert learner(name, spec=alone, share_parameters=False).mean(x[..., :1]) == 2.0


@every
def test_what_was_seen_is_stored_as_it_happened(name: str) -> None:
    """The next observation is the one before any reset; the reward is in its place."""
    made = learner(name)
    play = Play(made, ends=0.5)
    seen, kept = [], []
    for _ in range(4):
        seen.append(play.obs)
        kept.append({n: x.clone() for n, x in play.step().items() if n in ("obs", "action")})
        kept[-1]["next_obs"] = torch.from_numpy(play.info["final_obs"]).unflatten(0, (2, -1))
    for t, step in enumerate(kept):
        np.testing.assert_array_equal(step["obs"].flatten(0, 1), seen[t])
        for n, x in step.items():
            if name in ON_POLICY:
                stored = made.data[n][:, t]
            else:
                stored = made.replay.data[n][t].unflatten(0, (2, -1))
            assert torch.equal(stored, x), n


# States -------------------------------------------------------------------------------------------


def test_a_state_of_another_learner_is_refused() -> None:
    state = learner("dqn").state_dict()
    with pytest.raises(ValueError, match="expected the parts"):
        learner("ppo").load_state_dict(state)
    with pytest.raises((ValueError, RuntimeError)):  # other sizes
        learner("dqn", "lstm").load_state_dict(state)
    with pytest.raises((ValueError, RuntimeError, KeyError)):
        learner("dqn", seeds=(0,)).load_state_dict(state)


@every
def test_a_copy_of_a_learner_goes_the_same_way_and_its_own(name: str) -> None:
    play = Play(learner(name, "gru"))(6)
    twin = copy.deepcopy(play)
    play(4)
    state = play.learner.state_dict()
    assert not same(state, twin.learner.state_dict())
    twin(4)
    assert same(state, twin.learner.state_dict())


# Looking in ---------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("encoder", ["mlp", "attention"])
def test_a_replicate_can_be_taken_out(name: str, encoder: str) -> None:
    """As a plain network that says what the learner says, of what it sees."""
    made = learner(name, encoder)
    Play(made)(6)
    obs = np.random.default_rng(0).normal(size=(7, OBS)).astype(np.float32)
    shown = torch.stack([made.seen_by(r, obs) for r in range(2)]).unsqueeze(2)
    shown = shown.expand(2, 7, AGENTS, OBS)
    out = made.outputs(shown)
    for r in range(2):
        plain = made.network(r)
        torch.testing.assert_close(plain(shown[r])[0], out[r])
        says = networks(made, made.acting, r)
        each = torch.stack([say(shown[r, :, 0]) for say in says], 1)
        torch.testing.assert_close(each, out[r])
        assert (plain.attention(shown[r]) == {}) == (encoder == "mlp")
        assert not any(p.requires_grad for p in plain.parameters())
    assert set(made.nets) >= {made.acting}
    assert made.network(0, list(made.nets)[-1]) is not None


@pytest.mark.parametrize("name", ["qmix", "mappo", "sac"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_policy_plays_any_number_of_rows(name: str, encoder: str) -> None:
    """A replicate's rows are acted on by its own network, wherever they stand."""
    made = learner(name, encoder)
    scatter(made)
    obs = np.random.default_rng(0).normal(size=(2, 9, AGENTS, OBS)).astype(np.float32)
    mask = np.ones((18, AGENTS, 3), bool)

    def play(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(-1, AGENTS, OBS)
        return made.policy()(rows, {"action_mask": mask[: len(rows)]}).reshape(*x.shape[:3], -1)

    many = play(obs)
    for rows in (slice(0, 1), slice(3, 7)):
        np.testing.assert_allclose(play(obs[:, rows]), many[:, rows], rtol=1e-4, atol=1e-5)
    swapped = play(obs[::-1])
    assert not np.allclose(swapped[::-1], many, atol=1e-3)  # replicates differ

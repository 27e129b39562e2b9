"""The faces of attention PPO: the calls of the program that they come from."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from marl_lib.agents.attention_ppo import (
    AttentionPPO,
    AttentionRLTrainer,
    PPOHyperparameters,
    TrainingConfig,
    copies,
)
from marl_lib.algorithms.ppo import AttentionPPOConfig
from marl_lib.config import ConfigError
from marl_lib.envs import GymnasiumBatch, TeamOfOne
from marl_lib.nn.encoders import AttentionEncoder

SMALL = PPOHyperparameters(d_model=16, n_heads=2, rollout=8, batch_size=128)


def test_the_example_trains():
    env = gym.make("CartPole-v1")
    agent = AttentionPPO(
        obs_dim=env.observation_space.shape[0],
        action_dim=env.action_space.n,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        hyperparams=PPOHyperparameters(n_heads=4, d_model=32),
    )
    config = TrainingConfig(total_timesteps=20_480, eval_freq=10_240, n_eval_episodes=20)
    before = agent.nets["actor"].flat.detach().clone()
    result = AttentionRLTrainer(agent, env, config).train(progress=False)
    assert result.steps == 20_480 and len(result.curve.steps) == 3
    assert not torch.equal(before, agent.nets["actor"].flat)
    start, *_, end = result.curve.array()[0]
    assert end > 2 * start


def test_hyperparameters_are_those_of_ppo_and_of_its_attention():
    assert PPOHyperparameters() == AttentionPPOConfig()
    settings = {"n_heads": 2, "hidden": [16, 8], "memory": "gru", "gamma": 0.9, "rollout": 8}
    made = PPOHyperparameters(**settings)
    encoder = AttentionEncoder(n_heads=2, hidden=(16, 8), memory="gru")
    assert made == AttentionPPOConfig(encoder=encoder, gamma=0.9, rollout=8)
    agent = AttentionPPO(4, 2, hyperparams=made, num_envs=4)
    assert agent.attention_weights(np.zeros(4))["pooling"].shape == (2, 1, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_head": 4}, "hyperparameter 'n_head' is not known; did you mean 'n_heads'"),
        ({"encoder": "mlp"}, "hyperparameter 'encoder' is not known"),
        ({"n_heads": 3}, "d_model must be a multiple of n_heads, 3, got 32"),
        ({"n_heads": 2.5}, "n_heads must be of type int, got 2.5"),
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"gamma": "much"}, "gamma must be of type float, got 'much'"),
    ],
)
def test_hyperparameters_that_cannot_be_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        PPOHyperparameters(**settings)


def test_what_an_agent_shows_of_itself():
    agent, obs = AttentionPPO(6, 3, hyperparams=SMALL, seed=1), np.linspace(-1, 1, 6)
    probs = agent.action_probabilities(obs)
    assert probs.shape == (3,) and probs.sum() == pytest.approx(1)
    assert agent.select_action(obs) == probs.argmax()
    weights = agent.attention_weights(obs)
    assert weights["layer_0"].shape == (2, 6, 6) and weights["pooling"].shape == (2, 1, 6)
    for w in weights.values():
        np.testing.assert_allclose(w.sum(-1), 1, rtol=1e-5)
    other = agent.attention_weights(obs[::-1])
    assert np.abs(other["pooling"] - weights["pooling"]).max() > 1e-4


def test_continuous_actions_stay_within_their_bounds():
    env = gym.make("Pendulum-v1")
    bounds = env.action_space.low, env.action_space.high
    agent = AttentionPPO(3, 1, hyperparams=SMALL, num_envs=4, bounds=bounds)
    config = TrainingConfig(total_timesteps=64, eval_freq=64, n_eval_episodes=1)
    result = AttentionRLTrainer(agent, env, config).train(progress=False)
    assert result.final["episode_return"].shape == (1, 1)
    action = agent.select_action(np.array([1.0, 0.0, 0.0]))
    assert action.shape == (1,) and abs(action[0]) <= 2
    with pytest.raises(ValueError, match="density"):
        agent.action_probabilities(np.zeros(3))


def test_registered_worlds_run_on_our_batches_and_changed_ones_on_gymnasiums():
    assert isinstance(copies(gym.make("CartPole-v1"))(3), TeamOfOne)
    assert isinstance(copies("Acrobot-v1")(3), TeamOfOne)
    shorter = gym.make("CartPole-v1", max_episode_steps=50)
    wrapped = gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda r: 0.5 * r)
    for env in (shorter, wrapped, gym.make("Pendulum-v1")):
        assert isinstance(copies(env)(2), GymnasiumBatch)
    world = copies(shorter)(2)
    world.reset(seed=0)
    assert world.max_steps == 50
    world = copies(wrapped)(2)
    world.reset(seed=0)
    _, reward, *_ = world.step(np.zeros((2, 1), int))
    assert (reward == 0.5).all()


def test_what_does_not_fit_is_refused():
    env = gym.make("CartPole-v1")
    with pytest.raises(ConfigError, match="obs_dim must be 4 here, the agent has 5"):
        AttentionRLTrainer(AttentionPPO(5, 2, hyperparams=SMALL), env)
    with pytest.raises(ConfigError, match="action_dim must be 2 here, the agent has 3"):
        AttentionRLTrainer(AttentionPPO(4, 3, hyperparams=SMALL), env)
    with pytest.raises(ConfigError, match="no spec"):
        AttentionRLTrainer(AttentionPPO(4, 2, hyperparams=SMALL), type(env.unwrapped)())
    with pytest.raises(ConfigError, match="eval_freq must be at least 1, got 0"):
        TrainingConfig(eval_freq=0)


def test_logs_and_checkpoint_go_to_the_folder(tmp_path):
    agent = AttentionPPO(4, 2, hyperparams=SMALL, num_envs=8)
    config = TrainingConfig(64, 64, 1, folder=str(tmp_path / "run"))
    AttentionRLTrainer(agent, "CartPole-v1", config).train(progress=False)
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 2

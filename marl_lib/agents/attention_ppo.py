"""Attention PPO for one gymnasium environment: an agent, its settings, and a trainer.

>>> import gymnasium as gym
>>> env = gym.make("CartPole-v1")
>>> agent = AttentionPPO(4, 2, hyperparams=PPOHyperparameters(n_heads=4, d_model=32))
>>> config = TrainingConfig(total_timesteps=4_096, eval_freq=4_096, n_eval_episodes=2)
>>> result = AttentionRLTrainer(agent, env, config).train(progress=False)
>>> result.steps
4096
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from marl_lib.algorithms.ppo import PPO, AttentionPPOConfig
from marl_lib.config import Config, ConfigError, Count, choice, from_mapping
from marl_lib.envs import ENVS, BatchedParallelEnv, GymnasiumBatch, make
from marl_lib.interpret import agent_of
from marl_lib.nn.distributions import Categorical
from marl_lib.nn.encoders import AttentionEncoder
from marl_lib.spec import Spec
from marl_lib.training import LoopConfig, MakeEnv, Trainer, TrainingResult


def PPOHyperparameters(**settings: Any) -> AttentionPPOConfig:
    """Return settings of PPO and of its attention, all by keywords side by side.

    Parameters
    ----------
    settings
        Those of :class:`marl_lib.algorithms.ppo.AttentionPPOConfig` but ``encoder``, and of
        :class:`marl_lib.nn.encoders.AttentionEncoder`.

    Raises
    ------
    ConfigError
        On a name that is not known, or a value that its setting does not take.
    """
    of_encoder = [f.name for f in fields(AttentionEncoder)]
    of_ppo = [f.name for f in fields(AttentionPPOConfig) if f.name != "encoder"]
    for name in settings:
        choice("hyperparameter", name, of_encoder + of_ppo)
    encoder = {name: settings.pop(name) for name in of_encoder if name in settings}
    attends = from_mapping(AttentionEncoder, encoder)
    return from_mapping(AttentionPPOConfig, {**settings, "encoder": attends})


@dataclass(frozen=True)
class TrainingConfig(Config):
    """How long to train and how often to look.

    Parameters
    ----------
    total_timesteps : int
    eval_freq : int
        Steps between evaluations.
    n_eval_episodes : int
        Episodes of each.
    folder : str or None
        Where logs and the checkpoint go; None keeps nothing.
    """

    total_timesteps: Count = 100_000
    eval_freq: Count = 10_000
    n_eval_episodes: Count = 10
    folder: str | None = None


class AttentionPPO(PPO):
    """One agent that attends over the features of its observation.

    Parameters
    ----------
    obs_dim, action_dim : int
        Length of the observation; number of discrete actions, or parts of a continuous one.
    device : torch device or None for the CPU
    hyperparams : AttentionPPOConfig or None
        As :func:`PPOHyperparameters` returns them.
    seed : int
    num_envs : int
        Environments it learns from side by side.
    bounds : (low, high) arrays (A,) or None
        Limits of a continuous action.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        device: str | torch.device | None = None,
        hyperparams: AttentionPPOConfig | None = None,
        *,
        seed: int = 0,
        num_envs: int = 64,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        super().__init__(
            Spec(obs_dim, int(action_dim), bounds=bounds),
            num_envs,
            [seed],
            AttentionPPOConfig() if hyperparams is None else hyperparams,
            device="cpu" if device is None else device,
        )

    def select_action(self, obs: np.ndarray) -> Any:
        """Return the likeliest action (or the mean one) for one observation (D,)."""
        action = self.policy()(np.asarray(obs, np.float32)[None, None], {})[0, 0]
        return action if self.spec.bounds else int(action)

    def action_probabilities(self, obs: np.ndarray) -> np.ndarray:
        """Return the probabilities of all discrete actions for one observation (D,), (A,)."""
        with torch.no_grad():
            policy = agent_of(self)(self._seen_once(obs))
        if not isinstance(policy, Categorical):
            raise ValueError("a continuous action has a density and no probabilities")
        probs: np.ndarray = policy.probs[0].numpy(force=True)
        return probs

    def attention_weights(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        """Return the actor's attention weights for one observation (D,).

        Returns
        -------
        dict : ``layer_0``, ... (H, D, D) and ``pooling`` (H, queries, D), where the policy has any.
        """
        weights = agent_of(self).attention(self._seen_once(obs))
        return {name: w[0].numpy(force=True) for name, w in weights.items()}

    def _seen_once(self, obs: np.ndarray) -> torch.Tensor:
        """Return one observation (D,) as the actor sees it, (1, D)."""
        return self.seen_by(0, np.asarray(obs, np.float32)[None])


class AttentionRLTrainer:
    """Trains an :class:`AttentionPPO` on a gymnasium environment, in many copies of it at once.

    Parameters
    ----------
    agent : AttentionPPO
    env : gymnasium.Env or str
        An environment made by ``gymnasium.make``, or a name as ``marl_lib.envs.make`` takes it.
        CartPole-v1, Acrobot-v1 and MountainCar-v0 as they are registered run on this library's own
        batches, which go through the same states a hundred times as fast; others on gymnasium's.
    config : TrainingConfig or None

    Raises
    ------
    ConfigError
        If the environment cannot be copied, or agent and environment do not fit.
    """

    def __init__(
        self, agent: AttentionPPO, env: gymnasium.Env | str, config: TrainingConfig | None = None
    ):
        self.agent, self.config = agent, TrainingConfig() if config is None else config
        self.make_env = copies(env)
        world, own = self.make_env(1).sizes(), agent.spec
        if world.obs_dim != own.obs_dim:
            raise ConfigError(f"obs_dim must be {world.obs_dim} here, the agent has {own.obs_dim}")
        if world.n_actions != own.n_actions:
            n = world.n_actions
            raise ConfigError(f"action_dim must be {n} here, the agent has {own.n_actions}")

    def train(self, progress: bool = True) -> TrainingResult:
        """Train for ``total_timesteps`` more and return what it came to."""
        c = self.config
        loop = LoopConfig(c.total_timesteps, c.eval_freq, c.n_eval_episodes, c.n_eval_episodes)
        self.agent.total_steps = self.agent.steps + c.total_timesteps
        folder = None if c.folder is None else Path(c.folder)
        return Trainer(self.make_env, self.agent, loop, folder, progress).train()


def copies(env: gymnasium.Env | str) -> MakeEnv:
    """Return ``make_env(num_envs)`` for copies of a gymnasium environment, or of a named world."""
    if isinstance(env, str):
        return partial(_named, env)
    spec = env.spec
    if spec is None:
        raise ConfigError("the environment has no spec to copy: make it with gymnasium.make")
    kwargs = {k: v for k, v in spec.kwargs.items() if k != "render_mode"}
    plain = gymnasium.spec(spec.id)
    changed = spec.additional_wrappers or kwargs != plain.kwargs
    if spec.id in ENVS and not changed and spec.max_episode_steps == plain.max_episode_steps:
        return partial(_named, spec.id)
    return partial(GymnasiumBatch, spec)


def _named(name: str, num_envs: int) -> BatchedParallelEnv:
    return make(name, num_envs)

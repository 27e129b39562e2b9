"""Proximal policy optimisation (Schulman et al. 2017), for one agent and for teams.

PPO for one agent; for teams IPPO (de Witt et al. 2020) and MAPPO (Yu et al. 2022), which differ in
what the critic sees. Actor and critic are networks of their own, so no coefficient has to weigh
their losses against each other. Read from top to bottom: settings, networks, acting, loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from marl_lib.advantages import generalised_advantage
from marl_lib.config import Count, NonNegative, Positive, Unit, require
from marl_lib.learner import Data
from marl_lib.nn.distributions import Categorical, DiagonalGaussian, Distribution
from marl_lib.nn.encoders import AttentionEncoder, Encoder
from marl_lib.nn.heads import PolicyHead
from marl_lib.nn.layers import Layers, orthogonal
from marl_lib.nn.normalization import RunningNorm
from marl_lib.on_policy import OnPolicy, OnPolicyConfig


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    """Settings of PPO.

    Parameters
    ----------
    critic : {"own", "central", "turned"}
        The critic sees what its agent sees (IPPO), or all observations side by side (MAPPO), in the
        order of the agents or turned such that the agent's own comes first; and always the agent's
        id. One that judges an agent by its own reward needs the own part most, and should not have
        to find it by the id.
    team_reward : bool
        Every agent learns from the sum of all rewards, which is what a team is judged by; otherwise
        from its own reward, which tells better what it did itself but makes it selfish. Where all
        are paid the same, the two differ by a factor that the normalisations take out.
    gae_lambda : float
        λ of generalised advantage estimation, in [0, 1].
    clip_ratio : float
        ε of the clipped objective (Schulman et al. 2017, equation 7).
    clip_value : float or None
        Keep the new value within this distance of the old one in the loss, in the units in which
        the critic predicts; None does not.
    entropy_coef : float
        Weight of the entropy bonus.
    target_kl : float or None
        Stop the passes over a rollout when the approximate KL divergence of an epoch exceeds this.
    normalise_obs, normalise_value, normalise_advantage : bool
        Observations by running mean and deviation; what the critic predicts by those of the
        returns; advantages within each minibatch.
    """

    critic: Literal["own", "central", "turned"] = "own"
    team_reward: bool = True
    gae_lambda: Unit = 0.95
    clip_ratio: Positive = 0.2
    clip_value: Positive | None = None
    entropy_coef: NonNegative = 0.0
    target_kl: Positive | None = None
    normalise_obs: bool = True
    normalise_value: bool = False
    normalise_advantage: bool = True

    def check(self) -> None:
        """Refuse a batch of one advantage, which has no deviation."""
        super().check()
        least = 2 if self.normalise_advantage else 1
        require(self.batch_size >= least, "batch_size", self.batch_size, f"at least {least}")


@dataclass(frozen=True)
class AttentionPPOConfig(PPOConfig):
    """Settings of PPO whose actor and critic attend over tokens."""

    encoder: Encoder = field(default_factory=AttentionEncoder)
    learning_rate: Positive = 7e-4


@dataclass(frozen=True)
class IPPOConfig(PPOConfig):
    """Settings of IPPO: PPO for a team, each critic seeing what its agent sees."""

    learning_rate: Positive = 7e-4
    rollout: Count = 25
    epochs: Count = 10
    batch_size: Count = 1600
    entropy_coef: NonNegative = 0.01
    max_grad_norm: Positive | None = 10.0
    normalise_reward: bool = False
    normalise_value: bool = True


@dataclass(frozen=True)
class MAPPOConfig(IPPOConfig):
    """Settings of MAPPO: those of :class:`IPPOConfig` with a critic that sees everything."""

    critic: Literal["own", "central", "turned"] = "central"


class PPO(OnPolicy):
    """R replicates of an agent or a team, see :class:`marl_lib.learner.Learner`."""

    config: PPOConfig
    config_type = PPOConfig
    layers = Layers("tanh", init="orthogonal")
    actions = "any"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        s, r = self.spec, self.replicates
        count = None if s.tokens is None else s.tokens.count
        self.norm = RunningNorm(r, s.obs_dim, count, device=self.device)
        self.value_norm = RunningNorm(r, 1, clip=math.inf, device=self.device)
        size = getattr(self.nets["critic"].module, "memory_size", 0)
        self.critic_start = self.memory.new_zeros(*self.memory.shape[:-1], size)

    def networks(self) -> dict[str, Callable[[], nn.Module]]:
        """Return actor and critic."""
        s, continuous = self.spec, self.spec.bounds is not None
        own = self.config.critic == "own"
        size, tokens = (s.obs_dim, s.tokens) if own else (s.state_dim, s.state_tokens)
        return {
            "actor": lambda: self.team(lambda f: PolicyHead(f, s.n_actions, continuous)),
            "critic": lambda: self.team(
                lambda f: orthogonal(f, 1, 1.0), size_in=size, tokens=tokens
            ),
        }

    # Acting ---------------------------------------------------------------------------------------

    def see(self, obs: Tensor) -> Tensor:
        """Return observations (R, ..., D) normalised."""
        if not self.config.normalise_obs:
            return obs
        return self.norm(obs.flatten(1, -2)).view(obs.shape)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """For each agent, the numbers that an action is drawn with."""
        return self.spec.n_agents, 1 if self.spec.bounds is None else self.spec.n_actions

    def pi(self, output: Tensor, mask: Tensor | None = None) -> Distribution:
        """Return the distribution over (..., N) that an actor's output stands for."""
        if self.spec.bounds is not None:
            return DiagonalGaussian(output)
        if mask is not None:  # not -inf, for which the entropy would be NaN
            output = output.masked_fill(~mask, torch.finfo(output.dtype).min)
        return Categorical(output)

    def choose(self, net: Any, seen: Data, explore: bool) -> Data:
        """Return an action drawn from the policy, or its likeliest."""
        output, memory = net.actor(seen["obs"], seen["memory"])
        policy = self.pi(output, seen.get("mask"))
        action = policy.sample(seen["noise"]) if explore else policy.mode()
        return {"action": action, "memory": memory}

    def to_env(self, action: Tensor) -> np.ndarray:
        """Return actions as a world takes them, clipped to its bounds."""
        out = super().to_env(action)
        return out if self.spec.bounds is None else np.clip(out, *self.spec.bounds)

    # Learning -------------------------------------------------------------------------------------

    def critic_sees(self, obs: Tensor) -> Tensor:
        """Return what the critic is shown (..., N, ·) of observations (..., N, D)."""
        n = self.spec.n_agents
        if self.config.critic == "own":
            return obs
        if self.config.critic == "central":
            return obs.flatten(-2).unsqueeze(-2).expand(*obs.shape[:-1], -1)
        agents = torch.arange(n, device=obs.device)
        turned = (agents[:, None] + agents) % n  # row i: i first, then those after it
        return obs[..., turned, :].flatten(-2)

    def value(self, net: Any, obs: Tensor, memory: Tensor, first: Tensor | None = None) -> Any:
        """Return what the critic predicts (..., N), and its memory; see ``nn.encoders``.

        With ``normalise_value`` these are returns less their mean, in standard deviations.
        """
        value, memory = net.critic(self.critic_sees(obs), memory, first)
        return value.squeeze(-1), memory

    @torch.no_grad()
    def prepare(self) -> Data:
        """Return the rollout in stretches, tensors (R, n, length, N, ...).

        Everything is computed with the networks that acted, without dropout, so that the ratio of
        the first minibatch is one. ``value`` and ``returns`` are in the critic's units, under the
        statistics that count the returns of this rollout; the values were made under those before
        it, with which the critic had learned.
        """
        c, d = self.config, self.data
        obs, first = self.see(d["obs"]), self.first
        value, after = self._values(obs, first)  # (R, T, B, N)
        next_value = self.following(value, partial(self._value_after, after))
        reward = d["reward"]
        if c.team_reward:
            reward = reward.sum(-1, keepdim=True).expand(reward.shape)
        ends = self.by_row(d["terminated"]), self.by_row(self.ended)
        paid, rows = self.by_row(reward), (self.by_row(value), self.by_row(next_value))
        if c.normalise_reward:
            paid = self.scale(paid, ends[1])
        advantage = generalised_advantage(paid, *rows, *ends, c.gamma, c.gae_lambda)
        advantage = advantage.view(value.shape)
        returns = advantage + value
        if c.normalise_value:
            self.value_norm.update(returns.flatten(1).unsqueeze(-1))
        kept = {"obs": obs, "first": first, "action": d["action"], "advantage": advantage}
        kept |= {"value": self.normalised(value), "returns": self.normalised(returns)}
        kept |= {"mask": d["mask"]} if "mask" in d else {}
        batch = {name: self.stretches(x, self.length) for name, x in kept.items()}
        starts = {"memory": (self.start, d["memory"]), "critic_memory": (self.critic_start, after)}
        for name, (start, then) in starts.items():
            batch[name] = self.stretches(self.before(start, then), self.length)[:, :, 0]
        batch["log_prob"] = self.lift(self.log_prob, batch)
        self.critic_start = after[:, -1] * ~self.ended[:, -1, :, None, None]
        self.norm.update(d["obs"].flatten(1, 3))
        return batch

    def _values(self, obs: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Return returns as the critic predicts them, and its memories after each step."""
        t = obs.shape[1]
        length = t if self.critic_start.shape[-1] else 1  # without memory each step stands alone
        start = self.critic_start.repeat(1, t // length, 1, 1)
        rows = self.stretches(obs, length), start, self.stretches(first, length)
        value, after = self.lift(self.value, *rows)
        return self.denormalised(self.whole(value, length)), self.whole(after, length)

    def _value_after(self, after: Tensor, steps: list[int]) -> Tensor:
        """Return the value of where some steps led to, (R, steps, B, N)."""
        final = self.see(self.data["next_obs"][:, steps])
        rows = (x.flatten(1, 2) for x in (final, after[:, steps]))
        value = self.lift(self.value, *rows)[0]
        return self.denormalised(value).view(final.shape[:-1])

    def normalised(self, returns: Tensor) -> Tensor:
        """Return returns (R, ...) in the units in which the critic predicts."""
        return self.value_norm(returns.flatten(1).unsqueeze(-1)).view(returns.shape)

    def denormalised(self, value: Tensor) -> Tensor:
        """Undo :meth:`normalised`."""
        shape = (-1, *[1] * (value.dim() - 1))
        return value / self.value_norm.scale.view(shape) + self.value_norm.mean.view(shape)

    def log_prob(self, net: Any, batch: Data) -> Tensor:
        """Return log π(a) of the actions of a batch of stretches, (n, length, N)."""
        output = net.actor(batch["obs"], batch["memory"], batch["first"])[0]
        return self.pi(output, batch.get("mask")).log_prob(batch["action"])

    def goes_on(self, epoch: list[Data]) -> Tensor | None:
        """Return where the policy has not yet moved too far from the one that acted."""
        if self.config.target_kl is None:
            return None
        return torch.stack([m["approx_kl"] for m in epoch]).mean(0) <= self.config.target_kl

    def learn(self, batch: Data) -> Data:
        """Make all passes over a rollout; dropout, if there is any, acts in the critic alone."""
        self.nets["critic"].train(getattr(self.config.encoder, "dropout", 0.0) > 0)
        figures = super().learn(batch)
        self.nets["critic"].train(False)
        returns, value = batch["returns"].flatten(1), batch["value"].flatten(1)
        spread = returns.var(1).clamp(min=1e-8)
        return figures | {"explained_variance": 1 - (returns - value).var(1) / spread}

    def minimised(self, left: float) -> Any:
        """Return actor and critic, and their loss with a clip ratio that is annealed."""
        return ("actor", "critic"), partial(self.loss, clip=left * self.config.clip_ratio)

    def loss(self, net: Any, batch: Data, clip: float) -> tuple[Tensor, Data]:
        """Return the clipped objective of the actor and the squared error of the critic.

        Parameters
        ----------
        net : namespace of networks, of one replicate
        batch : dict of tensors (n, length, N, ...)
            As :meth:`prepare` gives them.
        clip : float
            ε of equation 7.
        """
        c = self.config
        output = net.actor(batch["obs"], batch["memory"], batch["first"])[0]
        policy = self.pi(output, batch.get("mask"))
        log_ratio = policy.log_prob(batch["action"]) - batch["log_prob"]  # (n, length, N)
        ratio, advantage = log_ratio.exp(), batch["advantage"]
        if c.normalise_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        value = self.value(net, batch["obs"], batch["critic_memory"], batch["first"])[0]
        error = (value - batch["returns"]).square()
        if c.clip_value is not None:
            near = batch["value"] + (value - batch["value"]).clamp(-c.clip_value, c.clip_value)
            error = torch.maximum(error, (near - batch["returns"]).square())
        policy_loss, value_loss = -self.mean(gain), 0.5 * self.mean(error)
        entropy = self.mean(policy.entropy())
        figures = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        with torch.no_grad():  # J. Schulman, "Approximating KL divergence", 2020
            figures["approx_kl"] = (ratio - 1 - log_ratio).mean()
            figures["clip_fraction"] = ((ratio - 1).abs() > clip).float().mean()
        return policy_loss - c.entropy_coef * entropy + value_loss, figures

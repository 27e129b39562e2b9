"""Proximal policy optimisation (Schulman et al. 2017), for one agent and for teams.

For teams it is IPPO (de Witt et al. 2020) or MAPPO (Yu et al. 2022), by what the critic sees. Actor
and critic are separate, so no coefficient weighs their losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from marl_lib.advantages import explained_variance, generalised_advantage
from marl_lib.config import Count, NonNegative, Positive, Unit, at_least
from marl_lib.learner import Data
from marl_lib.nn.distributions import Categorical, DiagonalGaussian, Distribution
from marl_lib.nn.encoders import AttentionEncoder, Encoder
from marl_lib.nn.heads import PolicyHead
from marl_lib.nn.layers import Layers, orthogonal
from marl_lib.nn.normalization import NumberNorm, RunningNorm
from marl_lib.nn.team import joint_view
from marl_lib.on_policy import OnPolicy, OnPolicyConfig


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    """Settings of PPO.

    Parameters
    ----------
    critic : {"own", "central", "turned", "state"}
        What the critic sees. "own": what its agent sees (IPPO). The others: all observations side
        by side (MAPPO). "central": once for each agent, with its id; "turned": the same, its own
        observation first; "state": once for all of them, with a value of each as its output.
    team_reward : bool
        Every agent learns from the sum of all rewards, which a team is judged by, or from its own.
        Paid as one and seen once ("state"), a team has a single value.
    gae_lambda : float
        λ of generalised advantage estimation, in [0, 1].
    clip_ratio : float
        ε of the clipped objective (Schulman et al. 2017, equation 7).
    clip_value : float or None
        Keep the new value so near to the old one in the loss, in the critic's units; None does not.
    entropy_coef : float
        Weight of the entropy bonus.
    target_kl : float or None
        Stop the passes over a rollout when the mean KL divergence of one exceeds this.
    normalise_obs : bool
        Observations by their running mean and deviation.
    normalise_value : bool
        What the critic predicts by the running mean and deviation of the returns.
    normalise_advantage : bool
        Advantages by mean and deviation, within each minibatch.
    """

    critic: Literal["own", "central", "turned", "state"] = "own"
    team_reward: bool = True
    gae_lambda: Unit = 0.95
    clip_ratio: Positive = 0.2
    clip_value: Positive | None = None
    entropy_coef: NonNegative = 0.0
    target_kl: Positive | None = None
    normalise_obs: bool = True
    normalise_value: bool = False
    normalise_advantage: bool = True


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
    batch_size: Annotated[int, at_least(2)] = 1600
    entropy_coef: NonNegative = 0.01
    max_grad_norm: Positive | None = 10.0
    normalise_reward: bool = False
    normalise_value: bool = True


@dataclass(frozen=True)
class MAPPOConfig(IPPOConfig):
    """Settings of MAPPO: IPPO with a critic that sees everything."""

    critic: Literal["own", "central", "turned", "state"] = "central"


class PPO(OnPolicy):
    """R replicates of an agent or a team, see :class:`marl_lib.learner.Learner`."""

    config: PPOConfig
    config_type = PPOConfig
    layers = Layers("tanh", init="orthogonal")
    actions = "any"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        s, r = self.spec, self.replicates
        self.norm = RunningNorm(r, s.obs_dim, s.tokens, device=self.device)
        self.value_norm = NumberNorm(r, self.device)
        self.critic_start = self.memory[..., : self.views, :].clone()  # before the rollout

    def networks(self) -> dict[str, Callable[[], nn.Module]]:
        """Return actor and critic."""
        s, values = self.spec, self.n_values // self.views  # what a critic puts out
        state = {"size_in": s.state_dim, "tokens": s.state_tokens, "n_agents": self.views}
        sees = {} if self.config.critic == "own" else state
        return {
            "actor": lambda: self.team(lambda f: PolicyHead(f, s.n_actions, s.bounds is not None)),
            "critic": lambda: self.team(lambda f: orthogonal(f, values, 1.0), **sees),
        }

    @property
    def views(self) -> int:
        """How often the critic is shown a step: once, or once for each agent."""
        return 1 if self.config.critic == "state" else self.spec.n_agents

    @property
    def n_values(self) -> int:
        """V: a value for each agent, or, where the team is paid as one and seen once, for it."""
        return self.views if self.config.team_reward else self.spec.n_agents

    # Acting ---------------------------------------------------------------------------------------

    def see(self, obs: Tensor) -> Tensor:
        """Return observations (R, ..., D) normalised."""
        return self.norm(obs) if self.config.normalise_obs else obs

    def pi(self, output: Tensor, mask: Tensor | None = None) -> Distribution:
        """Return the distribution over (..., N) that an actor's output stands for."""
        discrete = self.spec.bounds is None
        return Categorical(output, mask) if discrete else DiagonalGaussian(output)

    def choose(self, net: Any, seen: Data) -> Data:
        """Return an action drawn from the policy, or its likeliest."""
        output, memory = net.actor(seen["obs"], seen["memory"])
        policy = self.pi(output, seen.get("mask"))
        action = policy.sample(seen["noise"]) if "noise" in seen else policy.mode()
        return {"action": action, "memory": memory}

    def value(self, net: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the critic predicts (..., V), in its own units, and its memory."""
        obs, *memory = inputs
        if self.config.critic != "own":
            obs = joint_view(obs, self.config.critic == "turned")[..., : self.views, :]
        value, after = net.critic(obs, *memory)
        return value.flatten(-2), after

    # Learning from a rollout ----------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self) -> Data:
        """Return the rollout in stretches, tensors (R, n, length, N, ...).

        Computed with the networks that acted, without dropout: the first minibatch's ratio is one.
        ``value`` and ``returns`` are in the critic's units, under statistics that count this
        rollout; the values were made under those before it.
        """
        c, d = self.config, self.data
        obs, reward = self.see(d["obs"]), d["reward"]
        value, after = self.run_along(self.value, obs, self.critic_start)
        value = self.value_norm.undo(value)  # (R, T, B, V)
        next_value = self.following(value, self._value_of, {"obs": d["next_obs"], "memory": after})
        if c.team_reward:
            reward = reward.sum(-1, keepdim=True).expand(value.shape)
        rows = self.by_row(reward, value=value, next_value=next_value)
        advantage = generalised_advantage(**rows, gamma=c.gamma, lam=c.gae_lambda)
        returns = (advantage := advantage.view(value.shape)) + value
        if c.normalise_value:
            self.value_norm.update(returns)
        kept: Data = {name: d[name] for name in ("action", "mask") if name in d}
        kept |= {"obs": obs, "advantage": advantage}
        kept |= {"value": self.value_norm(value), "returns": self.value_norm(returns)}
        starts = {"actor": (self.start, d["memory"]), "critic": (self.critic_start, after)}
        batch = self.cut_up(kept, {f"{name}_memory": x for name, x in starts.items()})
        batch["log_prob"] = self.lift(self.judge, batch)[0]
        self.critic_start = after[:, -1] * ~self.ended[:, -1, :, None, None]
        self.norm.update(d["obs"].flatten(1, 3))
        return batch

    def _value_of(self, seen: Data) -> Tensor:
        return self.value_norm.undo(self.lift(self.value, self.see(seen["obs"]), seen["memory"])[0])

    def judge(self, net: Any, batch: Data) -> tuple[Tensor, Tensor]:
        """Return log π(a) and the entropy of π along a batch of stretches, (n, length, N)."""
        output = net.actor(batch["obs"], batch["actor_memory"], batch["first"])[0]
        policy = self.pi(output, batch.get("mask"))
        return policy.log_prob(batch["action"]), policy.entropy()

    def goes_on(self, epoch: list[Data]) -> Tensor | None:
        """Return where the policy has not yet moved too far from the one that acted."""
        limit, kl = self.config.target_kl, torch.stack([m["approx_kl"] for m in epoch])
        return None if limit is None else kl.mean(0) <= limit

    def learn(self, batch: Data) -> Data:
        """Make all passes over a rollout; dropout, if there is any, acts in the critic alone."""
        self.nets["critic"].train(getattr(self.config.encoder, "dropout", 0.0) > 0)
        figures = super().learn(batch)
        self.nets["critic"].train(False)
        known = (batch[name].flatten(1) for name in ("returns", "value"))
        return figures | {"explained_variance": explained_variance(*known)}

    def minimised(self, left: float) -> Any:
        """Return actor and critic, and their loss with a clip ratio that is annealed."""
        clip = self.number("clip", left * self.config.clip_ratio)
        return ("actor", "critic"), partial(self.loss, clip=clip)

    def loss(self, net: Any, batch: Data, clip: Any) -> tuple[Tensor, Data]:
        """Return the clipped objective of the actor and the squared error of the critic.

        Parameters
        ----------
        net : namespace of networks, of one replicate
        batch : dict of tensors (n, length, N, ...), as :meth:`prepare` gives them
        clip : float, ε of equation 7
        """
        c, (log_prob, entropy) = self.config, self.judge(net, batch)
        log_ratio = log_prob - batch["log_prob"]  # (n, length, N)
        ratio, advantage = log_ratio.exp(), batch["advantage"]
        if c.normalise_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        value = self.value(net, batch["obs"], batch["critic_memory"], batch["first"])[0]
        error = (value - batch["returns"]).square()
        if c.clip_value is not None:
            near = batch["value"] + (value - batch["value"]).clamp(-c.clip_value, c.clip_value)
            error = torch.maximum(error, (near - batch["returns"]).square())
        actors, critics = (self.nets[name].copies for name in ("actor", "critic"))
        entropy, actor = self.mean(entropy), self.mean(-gain)
        critic = self.mean(0.5 * error, critics)
        loss = actor - c.entropy_coef * entropy + critic
        figures = {"policy_loss": actor / actors, "entropy": entropy / actors}  # agents' means
        figures |= {"value_loss": critic / critics, "loss": loss / actors}
        with torch.no_grad():  # J. Schulman, "Approximating KL divergence", 2020
            figures["approx_kl"] = (ratio - 1 - log_ratio).mean()
            figures["clip_fraction"] = ((ratio - 1).abs() > clip).float().mean()
        return loss, figures

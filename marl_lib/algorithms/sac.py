"""Soft actor-critic with a learned temperature (Haarnoja et al. 2018), for continuous actions.

Agents of a team learn independently, each from its own reward. Read from top to bottom: settings,
networks, acting, losses. Equations are those of T. Haarnoja et al., "Soft actor-critic algorithms
and applications", 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from marl_lib.config import Count, Finite, NonNegative, Positive, Share, require
from marl_lib.learner import Data
from marl_lib.nn.distributions import Bounds, SquashedGaussian
from marl_lib.nn.encoders import Encoder, MLPEncoder
from marl_lib.nn.team import Team
from marl_lib.off_policy import OffPolicy, OffPolicyConfig

LOG_STD = (-20.0, 2.0)  # bounds of the actor's log standard deviations, those of the authors' code


@dataclass(frozen=True)
class SACConfig(OffPolicyConfig):
    """Settings of SAC; until learning starts, actions are uniform between the bounds.

    Parameters
    ----------
    learning_rate, critic_learning_rate, alpha_learning_rate : float
        Of Adam, for the actor, the critics and the temperature.
    alpha : float
        Temperature, the worth of a nat of entropy in units of reward; where training begins ...
    learn_alpha : bool
        ... or where it stays.
    target_entropy : float or None
        What the temperature is learned for, in nats, of actions in the world's units. None is the
        paper's choice, minus one for each part of an action scaled to [-1, 1].
    """

    encoder: Encoder = field(default_factory=lambda: MLPEncoder(hidden=(256, 256)))
    learning_rate: Positive = 3e-4
    critic_learning_rate: Positive = 3e-4
    alpha_learning_rate: Positive = 3e-4
    batch_size: Count = 256
    buffer_size: Count = 1_000_000
    train_every: Count = 1
    target_every: Count = 1
    tau: Share = 0.005
    max_grad_norm: Positive | None = None
    alpha: NonNegative = 1.0
    learn_alpha: bool = True
    target_entropy: Finite | None = None

    def check(self) -> None:
        """Refuse a temperature that cannot be learned."""
        super().check()
        require(self.alpha > 0 or not self.learn_alpha, "alpha", self.alpha, "positive")


class Twins(nn.Module):
    """Two critics with the face of a team; where they differ, the lower one is believed.

    Parameters
    ----------
    make : callable
        Returns a :class:`marl_lib.nn.team.Team` of one value.
    """

    def __init__(self, make: Callable[[], Team]):
        super().__init__()
        self.first, self.second = make(), make()
        self.copies = self.first.copies
        self.memory_size: int = self.first.memory_size + self.second.memory_size

    def forward(
        self, x: Tensor, memory: Tensor | None, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return both values (..., N, 2), and both memories side by side."""
        halves = (None, None) if memory is None else memory.chunk(2, dim=-1)
        pairs = zip((self.first, self.second), halves, strict=True)
        values, after = zip(*(critic(x, m, first) for critic, m in pairs), strict=True)
        return torch.cat(values, dim=-1), torch.cat(after, dim=-1)


class Temperature(nn.Module):
    """One learned number, log α."""

    def __init__(self, alpha: float):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))

    def forward(self) -> Tensor:
        """Return α, ()."""
        return self.log_alpha.exp()


class SAC(OffPolicy):
    """R replicates of an agent, or of independent agents, see :class:`marl_lib.learner.Learner`.

    Raises
    ------
    ConfigError
        If the bounds of the actions are not finite or not in order.
    """

    config: SACConfig
    config_type = SACConfig
    actions = "continuous"

    def __init__(self, spec: Any, *args: Any, **kwargs: Any):
        super().__init__(spec, *args, **kwargs)
        self.learning_noise = 2 * spec.n_actions
        self.bounds = Bounds(*spec.bounds).to(self.device)
        goal = self.config.target_entropy
        if (
            goal is None
        ):  # the entropy of x is that of x scaled to [-1, 1] plus the log of the scale
            goal = float(self.bounds.half.log().sum()) - spec.n_actions
        self.target_entropy = goal

    def networks(self) -> dict[str, Callable[[], nn.Module]]:
        """Return actor, twin critics and, if it is learned, temperature."""
        c, d, a = self.config, self.spec.obs_dim, self.spec.n_actions

        def critic() -> Team:
            return self.team(lambda f: nn.Linear(f, 1), size_in=d + a, extra=a)

        nets: dict[str, Callable[[], nn.Module]] = {
            "actor": lambda: self.team(lambda f: nn.Linear(f, 2 * a)),
            "critic": lambda: Twins(critic),
        }
        return nets | ({"temperature": lambda: Temperature(c.alpha)} if c.learn_alpha else {})

    def learning_rates(self) -> dict[str, float]:
        """Return those of actor, critics and temperature."""
        c = self.config
        rates = {"actor": c.learning_rate, "critic": c.critic_learning_rate}
        return rates | {"temperature": c.alpha_learning_rate}

    # Acting ---------------------------------------------------------------------------------------

    def pi(self, output: Tensor) -> SquashedGaussian:
        """Return the distribution that an actor's output (..., 2 A) stands for."""
        mean, log_std = output.chunk(2, dim=-1)
        output = torch.cat([mean, log_std.clamp(*LOG_STD)], dim=-1)
        return SquashedGaussian(output, self.bounds.low, self.bounds.high)

    def choose(self, net: Any, seen: Data) -> Data:
        """Return the squashed mean, or an action drawn from the policy; at first a uniform one."""
        output, memory = net.actor(seen["obs"], seen["memory"])
        if "noise" not in seen:
            action = self.pi(output).mode()
        elif self.steps < self.config.learning_starts:
            action = self.bounds.stretch(2 * seen["noise"] - 1)
        else:
            action = self.pi(output).sample(seen["noise"])
        return {"action": action, "memory": memory}

    # Learning -------------------------------------------------------------------------------------

    def losses(self) -> dict[str, Any]:
        """Return that of the critics, then that of actor and temperature."""
        learning = tuple(name for name in self.nets if name != "critic")
        return {
            "critic_loss": (("critic",), self.critic_loss),
            "actor_loss": (learning, self.actor_loss),
        }

    def looked_at(self, batch: Data) -> Data:
        """Return what actor and critics see."""
        return {"actor": batch["obs"], "critic": self.judged(batch["obs"], batch["action"])}

    def judged(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return what the critics see, (..., N, D + A), actions scaled to [-1, 1]."""
        return torch.cat([obs, self.bounds.shrink(action)], dim=-1)

    def alpha(self, net: Any) -> Tensor | float:
        """Return the temperature."""
        return net.temperature() if self.config.learn_alpha else self.config.alpha

    @torch.no_grad()
    def soft_target(self, net: Any, target: Any, batch: Data) -> Tensor:
        """Return r + γ (1 - terminated) (min Q'(s', a') - α log π(a')), (batch, T, N).

        a' is drawn anew from the policy; a truncated transition is not terminated. Equations 3, 5.
        """
        memory = None
        if self.memory_size:  # that of the actor after each step
            memory = net.actor(batch["obs"], batch["actor_memory"], batch["first"])[1]
        policy = self.pi(net.actor(batch["next_obs"], memory)[0])
        noise = batch["noise"].chunk(2, dim=-1)[0]
        action, log_prob = policy.sample_with_log_prob(noise)
        x, memory = (self.judged(batch["next_obs"], action), batch.get("critic_target_memory"))
        q = target.critic(x, memory)[0].amin(-1)
        value = q - self.alpha(net) * log_prob
        ended = batch["terminated"].unsqueeze(-1)
        return batch["reward"] + self.config.gamma * value.masked_fill(ended, 0.0)

    def critic_loss(self, net: Any, target: Any, batch: Data) -> tuple[Tensor, Data]:
        """Return half the mean squared soft Bellman error, summed over the twins, equation 5.

        Parameters
        ----------
        net, target : namespaces of networks, of one replicate
        batch : dict of tensors (batch, T, ...), ``noise`` uniform
        """
        x = self.judged(batch["obs"], batch["action"])
        q = net.critic(x, batch.get("critic_memory"), batch["first"])[0]  # (batch, T, N, 2)
        error = q - self.soft_target(net, target, batch).unsqueeze(-1)
        loss = 0.5 * error.square().sum(-1)
        return self.mean(loss), {"loss": loss.mean()}

    def actor_loss(self, net: Any, target: Any, batch: Data) -> tuple[Tensor, Data]:
        """Return the mean of α log π(a) - min Q(s, a), equation 7, and the temperature's loss.

        The gradient reaches the actor through the action; the critics are held fixed. The
        temperature learns from -α (E log π + target entropy), section 5, in which the policy is.
        """
        output = net.actor(batch["obs"], batch.get("actor_memory"), batch["first"])[0]
        noise = batch["noise"].chunk(2, dim=-1)[1]
        action, log_prob = self.pi(output).sample_with_log_prob(noise)
        q = net.critic(self.judged(batch["obs"], action), batch.get("critic_before"))[0].amin(-1)
        alpha = self.alpha(net) * log_prob.new_ones(())
        loss = alpha.detach() * log_prob - q
        gap = log_prob.detach().mean() + self.target_entropy
        figures = {"loss": loss.mean(), "alpha": alpha.detach(), "entropy": -log_prob.mean()}
        return self.mean(loss) - alpha * gap, figures

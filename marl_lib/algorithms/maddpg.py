"""MADDPG: actors that see their own observation, critics that see everything (Lowe et al. 2017).

Read from top to bottom: settings, networks, acting, losses. Source: R. Lowe et al., "Multi-agent
actor-critic for mixed cooperative-competitive environments", 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from marl_lib.config import Count, Natural, NonNegative, Positive, Share, Unit
from marl_lib.exploration import decay
from marl_lib.learner import Data
from marl_lib.nn.distributions import Bounds, gumbel, gumbel_softmax, standard_normal
from marl_lib.off_policy import OffPolicy, OffPolicyConfig


@dataclass(frozen=True)
class MADDPGConfig(OffPolicyConfig):
    """Settings of MADDPG; until learning starts, actions are uniform.

    Parameters
    ----------
    learning_rate, critic_learning_rate : float
        Of Adam, for actors and critics.
    noise_start, noise_end : float
        Continuous actions: standard deviation of the Gaussian exploration noise, in units of half
        the width of the bounds, going from one to the other in a line ...
    noise_steps : int
        ... over this many steps.
    temperature : float
        Discrete actions: of the Gumbel-softmax on the way back (Jang et al. 2017).
    actor_penalty : float
        Weight of the mean square of what an actor puts out before tanh or softmax, which keeps it
        from running into saturation (in the authors' code, 1e-3).
    team_reward : bool
        Every critic learns from the sum of the agents' rewards; otherwise each from its agent's own
        reward. Shared networks need a single value then.
    """

    gamma: Unit = 0.95
    learning_rate: Positive = 1e-2
    critic_learning_rate: Positive = 1e-2
    batch_size: Count = 1024
    buffer_size: Count = 1_000_000
    learning_starts: Natural = 25_600
    train_every: Count = 100
    target_every: Count = 1
    tau: Share = 0.01
    noise_start: NonNegative = 0.3
    noise_end: NonNegative = 0.1
    noise_steps: Natural = 100_000
    temperature: Positive = 1.0
    actor_penalty: NonNegative = 1e-3
    team_reward: bool = False
    max_grad_norm: Positive | None = 0.5


def replaced(policy: Tensor, replay: Tensor) -> Tensor:
    """Return the joint action that each agent's actor is judged by.

    Parameters
    ----------
    policy, replay : (..., N, A)
        What the actors would do now, and what was done.

    Returns
    -------
    Tensor (..., N, N, A)
        Entry (i, j) is the action of agent j for the loss of agent i: that of the policy for
        j = i, of the replay for the others (Lowe et al. 2017, equation 5).
    """
    n = policy.shape[-2]
    own = torch.eye(n, dtype=torch.bool, device=policy.device).unsqueeze(-1)  # (N, N, 1)
    return torch.where(own, policy.unsqueeze(-3), replay.unsqueeze(-3))


class MADDPG(OffPolicy):
    """R replicates of a team of N agents, see :class:`marl_lib.learner.Learner`.

    Inside, an action is a vector: continuous ones scaled to [-1, 1], discrete ones one-hot. The
    state is the observations of all agents side by side.

    Raises
    ------
    ConfigError
        If the bounds of continuous actions are not finite or not in order.
    """

    config: MADDPGConfig
    config_type = MADDPGConfig
    actions = "any"

    def __init__(self, spec: Any, *args: Any, **kwargs: Any):
        self.bounds = None if spec.bounds is None else Bounds(*spec.bounds)
        super().__init__(spec, *args, **kwargs)
        if self.bounds is None:
            self.learning_noise = self.spec.n_actions
        else:
            self.bounds.to(self.device)

    def networks(self) -> dict[str, Callable[[], nn.Module]]:
        """Return actors and critics."""
        c, s = self.config, self.spec
        joint = s.n_agents * s.n_actions
        # Shared critics that learn one reward need not know whose it is.
        values = 1 if c.team_reward and c.share_parameters else s.n_agents
        sees = {"size_in": s.state_dim + joint, "tokens": s.state_tokens, "extra": joint}
        return {
            "actor": lambda: self.team(lambda f: nn.Linear(f, s.n_actions)),
            "critic": lambda: self.team(lambda f: nn.Linear(f, 1), n_agents=values, **sees),
        }

    def learning_rates(self) -> dict[str, float]:
        """Return those of actors and critics."""
        return {"actor": self.config.learning_rate, "critic": self.config.critic_learning_rate}

    # Acting ---------------------------------------------------------------------------------------

    @property
    def noise_shape(self) -> tuple[int, int]:
        """For each agent, a number for each action or part of one."""
        return self.spec.n_agents, self.spec.n_actions

    def choose(self, net: Any, seen: Data) -> Data:
        """Return the actors' own actions, or with the noise of training; at first uniform ones."""
        out, memory = net.actor(seen["obs"], seen["memory"])
        if "mask" in seen:
            out = out.masked_fill(~seen["mask"], -torch.inf)
        if self.bounds is None:
            return {"action": self._discrete(out, seen.get("noise")).argmax(-1), "memory": memory}
        action = self.bounds.stretch(self._continuous(out, seen.get("noise")))
        return {"action": action, "memory": memory}

    def _discrete(self, out: Tensor, noise: Tensor | None) -> Tensor:
        """Return numbers whose greatest says what to do."""
        if noise is None:
            return out
        if self.steps < self.config.learning_starts:  # the greatest of equally distributed numbers
            return noise.masked_fill(out.isinf(), -torch.inf)
        return out + gumbel(noise)  # the place of the maximum is a draw from softmax(out)

    def _continuous(self, out: Tensor, noise: Tensor | None) -> Tensor:
        """Return actions scaled to [-1, 1]; noise may lead beyond."""
        c = self.config
        if noise is None:
            return out.tanh()
        if self.steps < c.learning_starts:
            return 2 * noise - 1
        scale = decay(c.noise_start, c.noise_end, c.noise_steps, self.steps)
        return out.tanh() + scale * standard_normal(noise)

    # Learning -------------------------------------------------------------------------------------

    def vector(self, action: Tensor) -> Tensor:
        """Return actions of the world (..., N[, A]) as the networks take them, (..., N, A)."""
        if self.bounds is None:
            each = torch.arange(self.spec.n_actions, device=action.device)
            return (action.unsqueeze(-1) == each).float()  # F.one_hot waits for the device
        return self.bounds.shrink(action)

    def judged(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return what critics see: the state and joint actions, (..., V, N D + N A).

        Parameters
        ----------
        obs : (..., N, D)
        action : (..., N, A), or (..., V, N, A) for one joint action a value
        """
        if action.dim() == obs.dim():
            values = 1 if self.config.team_reward and self.config.share_parameters else None
            action = action.unsqueeze(-3).expand(*obs.shape[:-2], values or obs.shape[-2], -1, -1)
        state = obs.flatten(-2).unsqueeze(-2).expand(*action.shape[:-2], -1)
        return torch.cat([state, action.flatten(-2)], dim=-1)

    def looked_at(self, batch: Data) -> Data:
        """Return what actors and critics see."""
        return {
            "actor": batch["obs"],
            "critic": self.judged(batch["obs"], self.vector(batch["action"])),
        }

    def losses(self) -> dict[str, Any]:
        """Return that of the critics, then that of the actors."""
        return {
            "critic_loss": (("critic",), self.critic_loss),
            "actor_loss": (("actor",), self.actor_loss),
        }

    def critic_loss(self, net: Any, target: Any, batch: Data) -> tuple[Tensor, Data]:
        """Return the mean squared error of the critics, equation 6.

        Parameters
        ----------
        net, target : namespaces of networks, of one replicate
        batch : dict of tensors (batch, T, ...)
        """
        x = self.judged(batch["obs"], self.vector(batch["action"]))
        q = net.critic(x, batch.get("critic_memory"), batch["first"])[0]  # (batch, T, V, 1)
        error = (q.squeeze(-1) - self.td_target(target, batch)).square()
        return self.mean(error), {"loss": error.mean()}

    @torch.no_grad()
    def td_target(self, target: Any, batch: Data) -> Tensor:
        """Return r + γ (1 - terminated) Q'(s', μ'(o')), equation 6, (batch, T, V).

        A truncated transition is not terminated: its value goes on. Discrete actions are the
        target actors' likeliest ones.
        """
        out = target.actor(batch["next_obs"], batch.get("actor_target_memory"))[0]
        if "next_mask" in batch:
            out = out.masked_fill(~batch["next_mask"], -torch.inf)
        action = self.vector(out.argmax(-1)) if self.bounds is None else out.tanh()
        x, memory = (self.judged(batch["next_obs"], action), batch.get("critic_target_memory"))
        value = target.critic(x, memory)[0].squeeze(-1)
        reward = batch["reward"]  # (batch, T, N)
        if self.config.team_reward:
            reward = reward.sum(-1, keepdim=True)
        ended = batch["terminated"].unsqueeze(-1)
        return reward + self.config.gamma * value.masked_fill(ended, 0.0)

    def actor_loss(self, net: Any, target: Any, batch: Data) -> tuple[Tensor, Data]:
        """Return minus the mean value of what every actor would do, equation 5.

        In the joint action only the agent's own part is its policy's; the others are those of the
        replay. The gradient reaches the actor through that part; the critics are held fixed.
        """
        c, done = self.config, self.vector(batch["action"])
        out = net.actor(batch["obs"], batch.get("actor_memory"), batch["first"])[0]  # (…, N, A)
        if self.bounds is None:
            legal = out.masked_fill(~batch["mask"], -torch.inf) if "mask" in batch else out
            action = gumbel_softmax(legal, batch["noise"], c.temperature)
        else:
            action = out.tanh()
        x = self.judged(batch["obs"], replaced(action, done))  # (batch, T, N, N D + N A)
        memory = batch.get("critic_before")  # of one value that judges N joint actions, or of N
        memory = None if memory is None else memory.expand(*x.shape[:-1], -1)
        q = net.critic(x, memory)[0].squeeze(-1)
        loss = c.actor_penalty * out.square().mean(-1) - q
        return self.mean(loss), {"loss": loss.mean()}

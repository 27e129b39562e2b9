"""PPO for teams: MAPPO (Yu et al. 2022) and IPPO (de Witt et al. 2020).

Read from top to bottom: configuration, networks, acting, loss, update. All agents share an actor,
which sees one agent's observation and its id. The critic only serves learning, so it may see more:
the whole state (MAPPO) or, as the actor, one observation (IPPO). Nothing else differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from marl_lib.advantages import generalised_advantage
from marl_lib.config import choice, require
from marl_lib.exploration import remaining
from marl_lib.nn.distributions import Categorical, DiagonalGaussian, Distribution
from marl_lib.nn.layers import orthogonal
from marl_lib.nn.normalization import RunningNorm
from marl_lib.replay import minibatches
from marl_lib.replicates import Adam, Replicates
from marl_lib.seeding import RandomStreams

Critic = Literal["central", "turned", "own"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class MAPPOConfig:
    """Settings of MAPPO and IPPO; steps are counted in environment steps of one replicate.

    Parameters
    ----------
    critic : {"central", "turned", "own"}
        The critic sees all observations side by side (MAPPO), in the order of the agents or turned
        such that the agent's own comes first, or that one alone (IPPO); and always the agent's id.
        One that judges an agent by its own reward needs the own part most, and should not have to
        find it by the id.
    team_reward : bool
        Every agent learns from the sum of all rewards, which is what a team is judged by; otherwise
        from its own reward, which tells better what it did itself but makes it selfish. Where all
        are paid the same, the two differ by a factor that the normalisations take out.
    gamma : float
        Discount, in [0, 1].
    gae_lambda : float
        λ of generalised advantage estimation, in [0, 1].
    learning_rate : float
        Of Adam.
    anneal : bool
        Let learning rate and clip ratio go down linearly to zero over the whole training.
    rollout : int
        Steps T of each environment between updates.
    epochs : int
        Passes over a rollout.
    minibatches : int
        Equal parts into which a rollout is cut in each pass; the agents of a step stay together.
    clip_ratio : float
        ε of the clipped objective (Schulman et al. 2017, equation 7).
    clip_value : float or None
        Keep the new value within this distance of the old one in the loss, in the units in which
        the critic predicts; None does not.
    entropy_coef : float
        Weight of the entropy bonus.
    max_grad_norm : float
        Longer gradients are scaled down, each network by its own norm.
    normalise_obs, normalise_value, normalise_advantage : bool
        Observations by running mean and deviation; what the critic predicts by those of the
        returns; advantages within each minibatch.
    hidden : tuple of int
        Widths of the hidden layers.
    activation : {"relu", "tanh"}
        Between them.
    """

    critic: Critic = "central"
    team_reward: bool = True
    gamma: float = 0.99
    gae_lambda: float = 0.95
    learning_rate: float = 7e-4
    anneal: bool = True
    rollout: int = 25
    epochs: int = 10
    minibatches: int = 1
    clip_ratio: float = 0.2
    clip_value: float | None = None
    entropy_coef: float = 0.01
    max_grad_norm: float = 10.0
    normalise_obs: bool = True
    normalise_value: bool = True
    normalise_advantage: bool = True
    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["relu", "tanh"] = "tanh"

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        choice("critic", self.critic, get_args(Critic))
        choice("activation", self.activation, ACTIVATIONS)
        for key in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        for key in ("learning_rate", "clip_ratio", "max_grad_norm"):
            require(getattr(self, key) > 0, key, getattr(self, key), "positive")
        for key in ("rollout", "epochs", "minibatches"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.entropy_coef >= 0, "entropy_coef", self.entropy_coef, "at least 0")
        positive = self.clip_value is None or self.clip_value > 0
        require(positive, "clip_value", self.clip_value, "positive or null")
        require(all(h >= 1 for h in self.hidden), "hidden", self.hidden, "widths of at least 1")


@dataclass(frozen=True)
class IPPOConfig(MAPPOConfig):
    """Settings of IPPO: those of :class:`MAPPOConfig`, each critic seeing what its agent sees."""

    critic: Critic = "own"


# Networks -----------------------------------------------------------------------------------------


class TeamNetwork(nn.Module):
    """Hidden layers and a head: an actor or a critic.

    Parameters
    ----------
    size_in, size_out : int
    config : MAPPOConfig
    gain : float
        Of the head's initial weights: 0.01 for an actor that starts near uniform, 1 for a critic.
    log_std : bool
        Add a learned log standard deviation for each output, which no observation changes.
    """

    def __init__(
        self, size_in: int, size_out: int, config: MAPPOConfig, gain: float, log_std: bool = False
    ):
        super().__init__()
        widths, layers = [size_in, *config.hidden], []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [orthogonal(before, after, math.sqrt(2)), ACTIVATIONS[config.activation]()]
        self.body = nn.Sequential(*layers)
        self.head = orthogonal(widths[-1], size_out, gain)
        self.log_std = nn.Parameter(torch.zeros(size_out)) if log_std else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's numbers (..., size_out), with log standard deviations twice as many."""
        out = self.head(self.body(x))
        if self.log_std is not None:
            out = torch.cat([out, self.log_std.expand_as(out)], dim=-1)
        return out


# The learner --------------------------------------------------------------------------------------


class MAPPO:
    """R replicates of a team of N agents that share an actor, on B environments each.

    Parameters
    ----------
    obs_dim : int
        Length D of one agent's observation.
    n_actions : int
        Number of discrete actions, or parts of a continuous one.
    n_agents : int
    num_envs : int
        Environments B of each replicate.
    seeds : sequence of int
        One for each of R replicates.
    config : MAPPOConfig
    total_steps : int or None
        Steps of the whole training, for annealing; None for none.
    bounds : (low, high) arrays (A,) or None
        Limits of a continuous action, to which what is sampled is clipped; None if discrete.
    action_masks : bool
        The world reports illegal actions; they get probability zero, in acting and in learning.
    device : str

    Raises
    ------
    ConfigError
        If a rollout is too small to be cut, or if there are masks of continuous actions.
    """

    def __init__(
        self,
        obs_dim: int,
        n_actions: int,
        n_agents: int,
        num_envs: int,
        seeds: Sequence[int],
        config: MAPPOConfig | None = None,
        *,
        total_steps: int | None = None,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        action_masks: bool = False,
        device: str | torch.device = "cpu",
    ):
        self.config = c = MAPPOConfig() if config is None else config
        self.obs_dim, self.n_actions, self.n_agents = obs_dim, n_actions, n_agents
        self.num_envs, self.total_steps, self.bounds = num_envs, total_steps, bounds
        self.seeds, self.device, self.action_masks = list(seeds), torch.device(device), action_masks
        rows = c.rollout * num_envs
        most = min(rows, rows * n_agents // 2)  # the deviation of one advantage is not defined
        require(c.minibatches <= most, "minibatches", c.minibatches, f"at most {most} here")
        masked = action_masks and bounds is not None
        require(not masked, "action_masks", action_masks, "false for continuous actions")
        self.distribution: type[Distribution] = DiagonalGaussian if bounds else Categorical
        # A shared network must know whose action it is asked for.
        self.ids = torch.eye(n_agents if n_agents > 1 else 0, device=device)
        sees = obs_dim if c.critic == "own" else obs_dim * n_agents
        agents = torch.arange(n_agents, device=device)
        self.turned = (agents[:, None] + agents) % n_agents  # row i: i first, then those after it

        def actor() -> nn.Module:
            return TeamNetwork(obs_dim + len(self.ids), n_actions, c, 0.01, bounds is not None)

        def critic() -> nn.Module:
            return TeamNetwork(sees + len(self.ids), 1, c, 1.0)

        self.actor = Replicates(actor, self.seeds, device=device)
        self.critic = Replicates(critic, self.seeds, device=device)
        nets = (self.actor, self.critic)
        self.optimizers = [Adam(net, c.learning_rate, eps=1e-5) for net in nets]
        self.norm = RunningNorm(len(self.seeds), obs_dim, device=device)
        self.value_norm = RunningNorm(len(self.seeds), 1, clip=math.inf, device=device)
        self.streams = RandomStreams(self.seeds, num_envs, "act")
        self.shuffle = RandomStreams(self.seeds, 1, "shuffle")
        self._numbers = n_actions if bounds else 1  # random ones that an action is drawn with
        self.data = self._make_rollout()
        self.t, self.steps = 0, 0  # steps in the rollout; environment steps of one replicate

    def _make_rollout(self) -> dict[str, Tensor]:
        shape, n = (len(self.seeds), self.config.rollout, self.num_envs), self.n_agents
        size = (n, self.n_actions) if self.bounds else (n,)
        kinds = {
            "obs": ((n, self.obs_dim), torch.float32),
            "next_obs": ((n, self.obs_dim), torch.float32),
            "action": (size, torch.float32 if self.bounds else torch.int64),
            "reward": ((n,), torch.float32),
            "terminated": ((), torch.bool),
            "truncated": ((), torch.bool),
        }
        if self.action_masks:
            kinds["mask"] = ((n, self.n_actions), torch.bool)
        return {
            name: torch.zeros(*shape, *tail, dtype=kind, device=self.device)
            for name, (tail, kind) in kinds.items()
        }

    # What the networks see and say ----------------------------------------------------------------

    def _tensor(self, x: np.ndarray) -> Tensor:
        """Return an array (R × any, ...) as a tensor (R, any, ...)."""
        return torch.as_tensor(x, device=self.device).unflatten(0, (len(self.seeds), -1))

    def _seen(self, obs: Tensor) -> Tensor:
        """Return observations (R, ..., D) as the networks see them."""
        if not self.config.normalise_obs:
            return obs
        return self.norm(obs.flatten(1, -2)).view(obs.shape)

    def _with_ids(self, x: Tensor) -> Tensor:
        """Return (R, any, N, D) with the agents' ids, agents folded in: (R, any × N, D + N)."""
        if len(self.ids):
            x = torch.cat([x, self.ids.expand(*x.shape[:2], *self.ids.shape)], dim=-1)
        return x.flatten(1, 2)

    def pi(self, obs: Tensor, mask: Tensor | None = None) -> Distribution:
        """Return the policies of all agents, a distribution over (R, any, N).

        Parameters
        ----------
        obs : (R, any, N, D), as the networks see them
        mask : (R, any, N, A) bool or None, True where an action is legal
        """
        output = self.actor(self._with_ids(obs)).unflatten(1, obs.shape[1:3])
        if mask is not None:  # not -inf, for which the entropy would be NaN
            output = output.masked_fill(~mask, torch.finfo(output.dtype).min)
        return self.distribution(output)

    def value(self, obs: Tensor) -> Tensor:
        """Return what the critic predicts, (R, any, N), for (R, any, N, D) as the networks see.

        With ``normalise_value`` these are returns less their mean, in standard deviations.
        """
        x = obs
        if self.config.critic == "central":
            x = obs.flatten(2).unsqueeze(2).expand(-1, -1, self.n_agents, -1)  # the state
        elif self.config.critic == "turned":
            x = obs[:, :, self.turned].flatten(3)
        return self.critic(self._with_ids(x)).view(obs.shape[:3])

    def _normalised(self, returns: Tensor) -> Tensor:
        """Return returns (R, any, N) in the units in which the critic predicts."""
        return self.value_norm(returns.flatten(1).unsqueeze(-1)).view(returns.shape)

    def _denormalised(self, value: Tensor) -> Tensor:
        """Undo :meth:`_normalised`."""
        norm = self.value_norm
        return value / norm.scale.unsqueeze(-1) + norm.mean.unsqueeze(-1)

    # Acting ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def distribution_of(self, obs: np.ndarray, info: dict[str, Any]) -> Distribution:
        """Return the policies for observations (R × any, N, D), over (R, any, N)."""
        mask = self._tensor(info["action_mask"]) if self.action_masks else None
        return self.pi(self._seen(self._tensor(obs)), mask)

    def _draw(self, policy: Distribution, streams: RandomStreams) -> Tensor:
        """Return sampled actions (R, any, N[, A])."""
        noise = streams.uniform(self.n_agents * self._numbers).astype(np.float32)
        return policy.sample(self._tensor(noise).unflatten(-1, (self.n_agents, -1)))

    def _to_env(self, action: Tensor) -> np.ndarray:
        """Return actions (R, any, N[, A]) as an environment takes them, (R × any, N[, A])."""
        out: np.ndarray = action.flatten(0, 1).numpy(force=True)
        return np.clip(out, *self.bounds) if self.bounds else out

    def policy(self, sampled: bool = False) -> Callable[[np.ndarray, dict[str, Any]], np.ndarray]:
        """Return the policy: the likeliest actions or the means, or drawn ones as in training.

        What is drawn comes from streams of its own, the same each time.
        """
        if not sampled:
            return lambda obs, info: self._to_env(self.distribution_of(obs, info).mode())
        streams: list[RandomStreams] = []  # made when the number of rows is known

        def act(obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            if not streams:
                streams.append(RandomStreams(self.seeds, len(obs) // len(self.seeds), "judge"))
            return self._to_env(self._draw(self.distribution_of(obs, info), streams[0]))

        return act

    def act(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return sampled actions (R × B, N[, A]) for observations (R × B, N, D)."""
        action = self._draw(self.distribution_of(obs, info), self.streams)
        self.data["action"][:, self.t] = action
        if self.action_masks:
            self.data["mask"][:, self.t] = self._tensor(info["action_mask"])
        return self._to_env(action)

    def observe(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        next_obs: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        """Add one step of all environments to the rollout; ``next_obs`` is ``final_obs``."""
        row = {
            "obs": obs,
            "next_obs": next_obs,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
        }
        for name, value in row.items():
            self.data[name][:, self.t] = self._tensor(value)
        self.t += 1
        self.steps += self.num_envs

    # Learning -------------------------------------------------------------------------------------

    def update(self) -> dict[str, np.ndarray]:
        """Learn from the rollout if it is full.

        Returns
        -------
        dict of (R,) arrays, empty if it is not full: policy_loss, value_loss, entropy (nats),
        approx_kl, clip_fraction, grad_norm (means over minibatches), explained_variance.
        """
        if self.t < self.config.rollout:
            return {}
        batch = self.prepare()
        metrics = self._learn(batch)
        self.norm.update(self.data["obs"].flatten(1, 3))
        self.t = 0
        returns = batch["returns"].flatten(1)
        error = (returns - batch["value"].flatten(1)).var(1)
        metrics["explained_variance"] = 1 - error / returns.var(1).clamp(min=1e-8)
        return {name: value.numpy(force=True) for name, value in metrics.items()}

    @torch.no_grad()
    def prepare(self) -> dict[str, Tensor]:
        """Return the rollout ready to learn from, tensors (R, T × B, N, ...).

        ``value`` and ``returns`` are in the critic's units, under the statistics that count the
        returns of this rollout; the values were made under those before it, with which the critic
        had learned.
        """
        c, d = self.config, self.data
        obs = self._seen(d["obs"]).flatten(1, 2)  # (R, T B, N, D)
        shape = d["reward"].shape
        value = self._denormalised(self.value(obs)).view(shape)  # (R, T, B, N)
        next_value = self._next_value(value)
        reward = d["reward"]
        if c.team_reward:
            reward = reward.sum(-1, keepdim=True).expand(shape)
        # Agents are folded into the batch, (R, T, B N): each has an advantage of its own.
        terminated = d["terminated"].unsqueeze(-1).expand(shape).flatten(2)
        advantage = generalised_advantage(
            reward.flatten(2),
            value.flatten(2),
            next_value.flatten(2),
            terminated,
            terminated | d["truncated"].unsqueeze(-1).expand(shape).flatten(2),
            c.gamma,
            c.gae_lambda,
        ).view(shape)
        returns = (advantage + value).flatten(1, 2)
        if c.normalise_value:
            self.value_norm.update(returns.flatten(1).unsqueeze(-1))
        batch = {
            "obs": obs,
            "action": d["action"].flatten(1, 2),
            "value": self._normalised(value.flatten(1, 2)),
            "advantage": advantage.flatten(1, 2),
            "returns": self._normalised(returns),
        }
        if self.action_masks:
            batch["mask"] = d["mask"].flatten(1, 2)
        batch["log_prob"] = self.pi(obs, batch.get("mask")).log_prob(batch["action"])
        return batch

    def _next_value(self, value: Tensor) -> Tensor:
        """Return V of what each step led to (R, T, B, N), given V of what it started from.

        Where an episode ended, the next observation in the rollout belongs to another one; only for
        steps at which one ran out of time, and for the last, is the critic asked again.
        """
        d = self.data
        ask = d["truncated"].any(2).any(0)  # (T,)
        ask[-1] = True
        final = self._seen(d["next_obs"][:, ask])  # (R, asked, B, N, D)
        out = value.roll(-1, dims=1)
        out[:, ask] = self._denormalised(self.value(final.flatten(1, 2))).view(final.shape[:-1])
        return out

    def losses(self, batch: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
        """Return the losses of a minibatch and what is watched, (R,) each.

        Parameters
        ----------
        batch : dict of tensors (R, n, N, ...)
            As :meth:`prepare` gives them.
        clip : float
            ε of equation 7.
        """
        c = self.config
        policy = self.pi(batch["obs"], batch.get("mask"))
        log_ratio = (policy.log_prob(batch["action"]) - batch["log_prob"]).flatten(1)  # (R, n N)
        ratio, advantage = log_ratio.exp(), batch["advantage"].flatten(1)
        if c.normalise_advantage:
            spread = advantage.std(1, keepdim=True) + 1e-8
            advantage = (advantage - advantage.mean(1, keepdim=True)) / spread
        clipped = ratio.clamp(1 - clip, 1 + clip)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        value, returns = self.value(batch["obs"]), batch["returns"]
        error = (value - returns).square()
        if c.clip_value is not None:
            near = batch["value"] + (value - batch["value"]).clamp(-c.clip_value, c.clip_value)
            error = torch.maximum(error, (near - returns).square())
        with torch.no_grad():
            kl = (ratio - 1 - log_ratio).mean(1)  # J. Schulman, "Approximating KL divergence", 2020
            outside = ((ratio - 1).abs() > clip).float().mean(1)
        return {
            "policy_loss": -gain.mean(1),
            "value_loss": 0.5 * error.mean((1, 2)),
            "entropy": policy.entropy().mean((1, 2)),
            "approx_kl": kl,
            "clip_fraction": outside,
        }

    def _learn(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make all passes over the rollout; return the means of what was watched."""
        c = self.config
        begun = self.steps - c.rollout * self.num_envs  # when this rollout was begun
        left = remaining(begun, self.total_steps if c.anneal else None)
        for optimizer in self.optimizers:
            optimizer.learning_rate = c.learning_rate * left
        seen = [
            self._step(part, c.clip_ratio * left)
            for _ in range(c.epochs)
            for part in minibatches(batch, c.minibatches, self.shuffle)
        ]
        return {name: torch.stack([m[name] for m in seen]).mean(0) for name in seen[0]}

    def _step(self, batch: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
        """Make one step of both optimisers."""
        found = self.losses(batch, clip)
        actor_loss = found["policy_loss"] - self.config.entropy_coef * found["entropy"]
        nets = (self.actor, self.critic)
        for net in nets:
            net.zero_grad()
        (actor_loss + found["value_loss"]).sum().backward()
        norms = [net.clip_gradient(self.config.max_grad_norm) for net in nets]
        for optimizer in self.optimizers:
            optimizer.step()
        found["grad_norm"] = torch.stack(norms).norm(dim=0)
        return {name: value.detach() for name, value in found.items()}

    # Keeping --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that learning depends on, the unfinished rollout included."""
        streams = {"act": self.streams.state_dict(), "shuffle": self.shuffle.state_dict()}
        return {
            "actor": self.actor.flat.clone(),
            "critic": self.critic.flat.clone(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "norm": self.norm.state_dict(),
            "value_norm": self.value_norm.state_dict(),
            "streams": {
                n: {k: torch.from_numpy(v) for k, v in s.items()} for n, s in streams.items()
            },
            "data": {name: x.clone() for name, x in self.data.items()},
            "t": self.t,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the learner that wrote ``state`` stood."""
        self.actor.flat.copy_(state["actor"])
        self.critic.flat.copy_(state["critic"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.norm.load_state_dict(state["norm"])
        self.value_norm.load_state_dict(state["value_norm"])
        for name, streams in (("act", self.streams), ("shuffle", self.shuffle)):
            streams.load_state_dict({k: v.numpy() for k, v in state["streams"][name].items()})
        for name, x in self.data.items():
            x.copy_(state["data"][name])
        self.t, self.steps = state["t"], state["steps"]

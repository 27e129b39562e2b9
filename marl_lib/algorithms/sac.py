"""Soft actor-critic with a learned temperature (Haarnoja et al. 2018) for one agent.

Read from top to bottom: configuration, networks, acting, losses, update. Equations are those of
T. Haarnoja et al., "Soft actor-critic algorithms and applications", 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from marl_lib.config import require
from marl_lib.nn.distributions import SquashedGaussian
from marl_lib.nn.layers import mlp
from marl_lib.replay import Replay
from marl_lib.replicates import Adam, Replicates
from marl_lib.seeding import RandomStreams

LOG_STD = (-20.0, 2.0)  # bounds of the actor's log standard deviations, those of the authors' code


@dataclass(frozen=True)
class SACConfig:
    """Settings of SAC; steps are counted in environment steps of one replicate.

    Parameters
    ----------
    gamma : float
        Discount, in [0, 1].
    learning_rate, critic_learning_rate, alpha_learning_rate : float
        Of Adam, for the actor, the critics and the temperature.
    batch_size : int
        Transitions in an update.
    buffer_size : int
        Transitions kept.
    learning_starts : int
        Steps before the first update; until then actions are uniform between the bounds.
    train_every : int
        Steps between updates; with more environments than this, several updates follow each step
        of the batch, so the ratio of updates to experience does not depend on ``num_envs``.
    tau : float
        Share of the critics that goes into their targets at each update (Polyak averaging).
    alpha : float
        Temperature, the worth of a nat of entropy in units of reward; where training begins ...
    learn_alpha : bool
        ... or where it stays.
    target_entropy : float or None
        What the temperature is learned for, in nats, of actions in the world's units. None is the
        paper's choice, minus one for each part of an action scaled to [-1, 1].
    hidden : tuple of int
        Widths of the hidden layers, of the actor and of each critic.
    max_grad_norm : float or None
        Longer gradients are scaled down, the actor's and the critics' each; the paper does not.
    """

    gamma: float = 0.99
    learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    alpha_learning_rate: float = 3e-4
    batch_size: int = 256
    buffer_size: int = 1_000_000
    learning_starts: int = 1_000
    train_every: int = 1
    tau: float = 0.005
    alpha: float = 1.0
    learn_alpha: bool = True
    target_entropy: float | None = None
    hidden: tuple[int, ...] = (256, 256)
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        require(0 < self.tau <= 1, "tau", self.tau, "in (0, 1]")
        for key in ("learning_rate", "critic_learning_rate", "alpha_learning_rate"):
            require(getattr(self, key) > 0, key, getattr(self, key), "positive")
        valid = self.alpha > 0 if self.learn_alpha else self.alpha >= 0
        require(valid, "alpha", self.alpha, "positive" if self.learn_alpha else "at least 0")
        for key in ("batch_size", "train_every", "buffer_size"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.learning_starts >= 0, "learning_starts", self.learning_starts, "at least 0")
        require(all(h >= 1 for h in self.hidden), "hidden", self.hidden, "widths of at least 1")
        goal, norm = self.target_entropy, self.max_grad_norm
        require(goal is None or math.isfinite(goal), "target_entropy", goal, "finite or null")
        require(norm is None or norm > 0, "max_grad_norm", norm, "positive or null")


# Networks -----------------------------------------------------------------------------------------


class Twins(nn.Module):
    """Two critics, (..., D + A) -> (..., 2); where they differ, the lower one is believed."""

    def __init__(self, size_in: int, hidden: Sequence[int]):
        super().__init__()
        self.first, self.second = (mlp(size_in, hidden, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return both values (..., 2)."""
        return torch.cat([self.first(x), self.second(x)], dim=-1)


class Temperature(nn.Module):
    """One learned number, log α."""

    def __init__(self, alpha: float):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))

    def forward(self) -> Tensor:
        """Return α, ()."""
        return self.log_alpha.exp()


class SAC:
    """R replicates of an agent with continuous actions on B environments each.

    Parameters
    ----------
    obs_dim : int
    n_actions : int
        Parts of an action, A.
    num_envs : int
        B, environments of one replicate.
    seeds : sequence of int
        One for each of R replicates.
    config : SACConfig
    bounds : pair of arrays (A,)
        Least and greatest action, finite.
    device : str

    Raises
    ------
    ConfigError
        If the bounds are not finite or not in order.
    """

    def __init__(
        self,
        obs_dim: int,
        n_actions: int,
        num_envs: int,
        seeds: Sequence[int],
        config: SACConfig | None = None,
        *,
        bounds: tuple[np.ndarray, np.ndarray],
        device: str | torch.device = "cpu",
    ):
        self.config = c = SACConfig() if config is None else config
        require(
            c.buffer_size >= num_envs, "buffer_size", c.buffer_size, f"at least {num_envs} here"
        )
        self.seeds, self.device = list(seeds), torch.device(device)
        self.num_envs, self.n_actions = num_envs, n_actions
        self._set_bounds(*bounds)
        actor_out = 2 * n_actions  # means and log standard deviations
        self.actor = Replicates(lambda: mlp(obs_dim, c.hidden, actor_out), seeds, device=device)
        self.critic = Replicates(lambda: Twins(obs_dim + n_actions, c.hidden), seeds, device=device)
        self.target = self.critic.flat.clone()
        self.temperature = Replicates(
            lambda: Temperature(c.alpha if c.learn_alpha else 1.0), seeds, device=device
        )
        self.optimizers = {
            "actor": Adam(self.actor, c.learning_rate),
            "critic": Adam(self.critic, c.critic_learning_rate),
            "temperature": Adam(self.temperature, c.alpha_learning_rate),
        }
        self.replay = Replay(
            c.buffer_size,
            num_envs,
            self.seeds,
            {
                "obs": ((obs_dim,), torch.float32),
                "action": ((n_actions,), torch.float32),
                "next_obs": ((obs_dim,), torch.float32),
            },
            device=self.device,
        )
        self.streams = {
            "act": RandomStreams(seeds, num_envs, "act"),
            "learn": RandomStreams(seeds, 1, "learn"),
        }
        self.steps = 0  # environment steps of one replicate
        self.updates = 0

    def _set_bounds(self, low: np.ndarray, high: np.ndarray) -> None:
        ok = np.isfinite([low, high]).all() and (np.asarray(low) < np.asarray(high)).all()
        require(bool(ok), "bounds", (low, high), "finite and in order")
        self.low = torch.as_tensor(low, dtype=torch.float32, device=self.device)
        self.high = torch.as_tensor(high, dtype=torch.float32, device=self.device)
        self._middle, self._half = (self.high + self.low) / 2, (self.high - self.low) / 2
        goal = self.config.target_entropy
        if (
            goal is None
        ):  # the entropy of x is that of x scaled to [-1, 1] plus the log of the scale
            goal = float(self._half.log().sum()) - self.n_actions
        self.target_entropy = goal

    # What the networks say ------------------------------------------------------------------------

    def pi(self, obs: Tensor) -> SquashedGaussian:
        """Return the policy's distribution for observations (R, batch, D)."""
        mean, log_std = self.actor(obs).chunk(2, dim=-1)
        output = torch.cat([mean, log_std.clamp(*LOG_STD)], dim=-1)
        return SquashedGaussian(output, self.low, self.high)

    def q_values(
        self, obs: Tensor, action: Tensor, params: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Return what the twins say, (R, batch, D) and (R, batch, A) -> (R, batch, 2)."""
        scaled = (action - self._middle) / self._half  # to [-1, 1]
        q: Tensor = self.critic(torch.cat([obs, scaled], dim=-1), params=params)
        return q

    def alpha(self) -> Tensor:
        """Return the temperature (R, 1), without gradient."""
        if not self.config.learn_alpha:
            return torch.full((len(self.seeds), 1), self.config.alpha, device=self.device)
        return self.temperature.flat.detach().exp().unsqueeze(1)

    # Acting ---------------------------------------------------------------------------------------

    def _tensor(self, x: np.ndarray) -> Tensor:
        """Return an array (R × any, ...) as a tensor (R, any, ...)."""
        return torch.as_tensor(x, device=self.device).unflatten(0, (len(self.seeds), -1))

    def _noise(self, streams: RandomStreams) -> Tensor:
        """Return the next uniform numbers of every row, (R, rows of a replicate, A)."""
        return self._tensor(streams.uniform(self.n_actions).astype(np.float32))

    def _to_env(self, action: Tensor) -> np.ndarray:
        """Return actions (R, any, A) as an environment takes them, (R × any, 1, A)."""
        # Rounding may put an action a digit beyond its bound.
        inside = action.clamp(self.low, self.high)
        return inside.flatten(0, 1).unsqueeze(1).numpy(force=True)

    @torch.no_grad()
    def act(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return sampled actions (R × B, 1, A) for observations (R × B, 1, D)."""
        noise = self._noise(self.streams["act"])
        if self.steps < self.config.learning_starts:
            return self._to_env(self.low + (self.high - self.low) * noise)
        return self._to_env(self.pi(self._tensor(obs[:, 0])).sample(noise))

    def policy(self, sampled: bool = False) -> Callable[[np.ndarray, dict[str, Any]], np.ndarray]:
        """Return the policy: the squashed mean, or an action drawn as in training.

        What is drawn comes from streams of its own, the same each time.
        """
        streams: list[RandomStreams] = []  # made when the number of rows is known

        @torch.no_grad()
        def act(obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            pi = self.pi(self._tensor(obs[:, 0]))
            if not sampled:
                return self._to_env(pi.mode())
            if not streams:
                streams.append(RandomStreams(self.seeds, len(obs) // len(self.seeds), "judge"))
            return self._to_env(pi.sample(self._noise(streams[0])))

        return act

    # Learning -------------------------------------------------------------------------------------

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
        """Store one step of all environments; ``next_obs`` is ``info["final_obs"]``."""
        self.replay.add(
            obs=obs[:, 0],
            action=action[:, 0],
            reward=reward[:, 0],
            next_obs=next_obs[:, 0],
            terminated=terminated,
            truncated=truncated,
        )
        self.steps += self.num_envs

    @torch.no_grad()
    def soft_target(self, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
        """Return r + γ (1 - terminated) (min Q'(s', a') - α log π(a')), (R, batch).

        a' is drawn anew from the policy; a truncated transition is not terminated. Equations 3, 5.
        """
        action, log_prob = self.pi(batch["next_obs"]).sample_with_log_prob(noise)
        q = self.q_values(batch["next_obs"], action, self.critic.views(self.target)).amin(-1)
        value = (q - self.alpha() * log_prob).masked_fill(batch["terminated"], 0.0)
        return batch["reward"] + self.config.gamma * value

    def critic_loss(self, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
        """Return half the mean squared soft Bellman error, summed over the twins, (R,), equation 5.

        ``noise`` (R, batch, A) is uniform, as everywhere here.
        """
        error = self.q_values(batch["obs"], batch["action"])  # (R, batch, 2)
        error = error - self.soft_target(batch, noise).unsqueeze(-1)
        return 0.5 * error.square().mean(1).sum(-1)

    def actor_loss(self, batch: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of α log π(a) - min Q(s, a), equation 7, and that of log π, (R,) each.

        The gradient reaches the actor through the action; the critics are held fixed.
        """
        action, log_prob = self.pi(batch["obs"]).sample_with_log_prob(noise)
        fixed = self.critic.views(self.critic.flat)
        q = self.q_values(batch["obs"], action, fixed).amin(-1)
        return (self.alpha() * log_prob - q).mean(1), log_prob.mean(1)

    def temperature_loss(self, log_prob: Tensor) -> Tensor:
        """Return -α (E log π + target entropy), (R,), section 5, from E log π (R,)."""
        return -self.temperature() * (log_prob.detach() + self.target_entropy)

    def update(self) -> dict[str, np.ndarray]:
        """Learn as often as the steps seen since the last call ask for.

        Returns
        -------
        dict of (R,) arrays: figures of the last update (see :meth:`learn_once`), empty if there was
        none.
        """
        c = self.config
        if self.steps < c.learning_starts or not len(self.replay):
            return {}
        due = (self.steps - c.learning_starts) // c.train_every - self.updates
        metrics: dict[str, np.ndarray] = {}
        for _ in range(due):
            metrics = self.learn_once()
        return metrics

    def learn_once(self) -> dict[str, np.ndarray]:
        """Make one update, due or not.

        Returns
        -------
        dict of (R,) arrays: critic_loss, actor_loss, alpha, entropy (nats), grad_norm (critics).
        """
        c, r = self.config, len(self.seeds)
        batch = self.replay.sample(c.batch_size)
        uniform = self.streams["learn"].uniform(2 * c.batch_size * self.n_actions)
        noise = self._tensor(uniform.astype(np.float32)).view(r, 2, c.batch_size, -1).unbind(1)

        critic_loss = self.critic_loss(batch, noise[0])
        norm = self.critic.backward(critic_loss, c.max_grad_norm)
        self.optimizers["critic"].step()

        actor_loss, log_prob = self.actor_loss(batch, noise[1])
        self.actor.backward(actor_loss, c.max_grad_norm)
        self.optimizers["actor"].step()

        if c.learn_alpha:
            self.temperature.backward(self.temperature_loss(log_prob))
            self.optimizers["temperature"].step()

        self.target.lerp_(self.critic.flat, c.tau)
        self.updates += 1
        found = {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "alpha": self.alpha().squeeze(1),
            "entropy": -log_prob,
            "grad_norm": norm,
        }
        return {name: value.numpy(force=True) for name, value in found.items()}

    # Keeping --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that learning depends on, the replay included."""
        return {
            "actor": self.actor.flat.clone(),
            "critic": self.critic.flat.clone(),
            "target": self.target.clone(),
            "temperature": self.temperature.flat.clone(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "streams": {
                name: {k: torch.from_numpy(v) for k, v in s.state_dict().items()}
                for name, s in self.streams.items()
            },
            "steps": self.steps,
            "updates": self.updates,
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the learner that wrote ``state`` stood."""
        for name in ("actor", "critic", "temperature"):
            getattr(self, name).flat.copy_(state[name])
        self.target.copy_(state["target"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, streams in self.streams.items():
            streams.load_state_dict({k: v.numpy() for k, v in state["streams"][name].items()})
        self.steps, self.updates = state["steps"], state["updates"]
        self.replay.load_state_dict(state["replay"])

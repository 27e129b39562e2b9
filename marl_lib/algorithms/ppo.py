"""Proximal policy optimisation (Schulman et al. 2017), with a plain or an attending policy.

Read from top to bottom: configuration, networks, acting, loss, update. Actor and critic are
networks of their own, so no coefficient has to weigh their losses against each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from marl_lib.advantages import RewardScale, generalised_advantage
from marl_lib.config import choice, require
from marl_lib.envs.base import Tokens
from marl_lib.exploration import remaining
from marl_lib.nn.attention import (
    AttentionBlock,
    AttentionPooling,
    FeatureTokens,
    LearnedPositions,
    causal_mask,
)
from marl_lib.nn.distributions import Categorical, DiagonalGaussian, Distribution
from marl_lib.nn.layers import orthogonal
from marl_lib.nn.normalization import RunningNorm
from marl_lib.replay import minibatches
from marl_lib.replicates import Adam, Replicates
from marl_lib.seeding import RandomStreams

POOLINGS = ("queries", "first", "last", "attention", "mean")


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO; steps are counted in environment steps of one replicate.

    Parameters
    ----------
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
    batch_size : int
        Steps in a minibatch; the rollout is cut into as many equal ones as fit.
    clip_ratio : float
        ε of the clipped objective (Schulman et al. 2017, equation 7).
    clip_value : float or None
        Keep the new value within this distance of the old one in the loss; None does not.
    entropy_coef : float
        Weight of the entropy bonus.
    max_grad_norm : float
        Longer gradients are scaled down, each network by its own norm.
    target_kl : float or None
        Stop the passes over a rollout when the approximate KL divergence of an epoch exceeds this.
    normalise_obs, normalise_reward, normalise_advantage : bool
        Observations by running mean and deviation; rewards by the running deviation of the
        discounted return; advantages within each minibatch.
    hidden : tuple of int
        Widths of the hidden layers.
    """

    gamma: float = 0.99
    gae_lambda: float = 0.95
    learning_rate: float = 1e-3
    anneal: bool = True
    rollout: int = 32
    epochs: int = 4
    batch_size: int = 512
    clip_ratio: float = 0.2
    clip_value: float | None = None
    entropy_coef: float = 0.0
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    normalise_obs: bool = True
    normalise_reward: bool = True
    normalise_advantage: bool = True
    hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for key in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        for key in ("learning_rate", "clip_ratio", "max_grad_norm"):
            require(getattr(self, key) > 0, key, getattr(self, key), "positive")
        for key in ("rollout", "epochs"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.entropy_coef >= 0, "entropy_coef", self.entropy_coef, "at least 0")
        for key in ("clip_value", "target_kl"):
            value = getattr(self, key)
            require(value is None or value > 0, key, value, "positive or null")
        least = 2 if self.normalise_advantage else 1  # one advantage has no deviation
        require(self.batch_size >= least, "batch_size", self.batch_size, f"at least {least}")
        require(all(h >= 1 for h in self.hidden), "hidden", self.hidden, "widths of at least 1")


@dataclass(frozen=True)
class AttentionPPOConfig(PPOConfig):
    """Settings of PPO whose actor and critic attend over tokens.

    What the tokens are depends on the world: past observations, entities, or, where it names none,
    the single features of the observation.

    Parameters
    ----------
    d_model : int
        Width of the tokens.
    n_heads, n_layers : int
        Heads of each attention; self-attention blocks (may be 0).
    d_hidden : int or None
        Width of the blocks' feed-forward networks; None for twice ``d_model``.
    pooling : {"queries", "first", "last", "attention", "mean"}
        How tokens become one vector: cross-attention to all of them from learned queries, from the
        first token (the agent among entities) or from the last (the present in a history);
        learned scores; or the plain mean.
    n_queries : int
        Learned queries of ``pooling="queries"``.
    norm : {"pre", "post"}
        Where LayerNorm stands.
    dropout : float
        Acts in the critic's loss alone. In rollouts it would make the policy another one at each
        step, and in the ratio of the objective it would compare two different networks.

    Other parameters are those of :class:`PPOConfig`; ``hidden`` are the layers after the pooling.
    """

    learning_rate: float = 7e-4
    d_model: int = 32
    n_heads: int = 4
    n_layers: int = 1
    d_hidden: int | None = None
    pooling: str = "queries"
    n_queries: int = 1
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    hidden: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        choice("pooling", self.pooling, POOLINGS)
        choice("norm", self.norm, ("pre", "post"))
        for key in ("d_model", "n_heads", "n_queries"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.n_layers >= 0, "n_layers", self.n_layers, "at least 0")
        wide = self.d_hidden is None or self.d_hidden >= 1
        require(wide, "d_hidden", self.d_hidden, "at least 1 or null")
        rule = f"a multiple of n_heads, {self.n_heads}"
        require(self.d_model % self.n_heads == 0, "d_model", self.d_model, rule)
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")


# Networks -----------------------------------------------------------------------------------------


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return hidden layers with tanh, (..., widths[0]) -> (..., widths[-1])."""
    layers: list[nn.Module] = []
    for size_in, size_out in zip(widths, widths[1:], strict=False):
        layers += [orthogonal(size_in, size_out, math.sqrt(2)), nn.Tanh()]
    return nn.Sequential(*layers)


class AttentionEncoder(nn.Module):
    """Reads an observation as tokens, lets them attend to each other, and pools them.

    Parameters
    ----------
    obs_dim : int
    config : AttentionPPOConfig
    tokens : Tokens or None
        How the world arranges its observation; None makes a token of every feature.
    fused : bool
        See :func:`marl_lib.nn.attention.attend`.
    """

    def __init__(
        self, obs_dim: int, config: AttentionPPOConfig, tokens: Tokens | None, fused: bool
    ):
        super().__init__()
        c, e = config, config.d_model
        self.tokens, self.pooling = tokens, c.pooling
        self.embed: nn.Module
        if tokens is None:
            self.embed, length = FeatureTokens(obs_dim, e), obs_dim
        else:
            self.embed, length = nn.Linear(tokens.size, e), tokens.count
        ordered = tokens is not None and tokens.ordered
        self.positions = LearnedPositions(length, e) if ordered else None
        self.blocks = nn.ModuleList(
            AttentionBlock(e, c.n_heads, None, c.d_hidden, c.dropout, c.norm, fused)
            for _ in range(c.n_layers)
        )
        self.norm = nn.LayerNorm(e) if c.norm == "pre" else nn.Identity()
        self.size = e
        if c.pooling in ("queries", "first", "last"):
            self.cross = AttentionBlock(e, c.n_heads, e, c.d_hidden, c.dropout, c.norm, fused)
        if c.pooling == "queries":
            self.queries = nn.Parameter(torch.randn(c.n_queries, e) / math.sqrt(e))
            self.size = e * c.n_queries
        elif c.pooling == "attention":
            self.pool = AttentionPooling(e, c.n_heads)

    def forward(self, obs: Tensor, need_weights: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Return features (..., size) and, if asked for, the weights of every attention.

        Returns
        -------
        features : (..., size)
        weights : dict
            ``layer_0``, ... (..., H, L, L) and, where the pooling has any, ``pooling``
            (..., H, queries, L); empty unless asked for.
        """
        present, x = None, obs
        if self.tokens is not None:
            x = obs.unflatten(-1, (self.tokens.count, 1 + self.tokens.size))
            present, x = x[..., 0] > 0.5, x[..., 1:]  # (..., L), (..., L, size)
        x = self.embed(x)  # (..., L, E)
        if self.positions is not None:
            x = self.positions(x)
        mask = None if present is None else present.unsqueeze(-2)  # (..., 1, L)
        within = mask
        if mask is not None and self.positions is not None:
            within = mask & causal_mask(x.shape[-2], x.device)  # (..., L, L)
        weights = {}
        for i, block in enumerate(self.blocks):
            x, w = block(x, None, within, need_weights)
            weights[f"layer_{i}"] = w
        pooled, w = self._pool(self.norm(x), present, mask, need_weights)
        weights["pooling"] = w
        return pooled, {k: w for k, w in weights.items() if w is not None}

    def _pool(
        self, x: Tensor, present: Tensor | None, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.pooling in ("queries", "first", "last"):
            if self.pooling == "queries":
                query = self.queries.expand(*x.shape[:-2], *self.queries.shape)
            else:
                query = x[..., :1, :] if self.pooling == "first" else x[..., -1:, :]
            out, weights = self.cross(query, x, mask, need_weights)  # (..., queries, E)
            return out.flatten(-2), weights
        if self.pooling == "attention":
            out, weights = self.pool(x, present, need_weights)
            return out, None if weights is None else weights.unsqueeze(-2)
        if present is None:
            return x.mean(-2), None
        share = present.float().unsqueeze(-1)  # (..., L, 1)
        return (x * share).sum(-2) / share.sum(-2).clamp(min=1), None


class PPONetwork(nn.Module):
    """Encoder, hidden layers and a head: an actor or a critic.

    Parameters
    ----------
    obs_dim, out_dim : int
    config : PPOConfig
        An :class:`AttentionPPOConfig` puts attention before the hidden layers.
    gain : float
        Of the head's initial weights: 0.01 for an actor that starts near uniform, 1 for a critic.
    tokens, fused
        As for :class:`AttentionEncoder`.
    log_std : bool
        Add a learned log standard deviation for each output, which no observation changes.
    """

    def __init__(
        self,
        obs_dim: int,
        out_dim: int,
        config: PPOConfig,
        gain: float,
        tokens: Tokens | None = None,
        fused: bool = True,
        log_std: bool = False,
    ):
        super().__init__()
        self.encoder = None
        if isinstance(config, AttentionPPOConfig):
            self.encoder = AttentionEncoder(obs_dim, config, tokens, fused)
        width = self.encoder.size if self.encoder else obs_dim
        self.body = mlp([width, *config.hidden])
        self.head = orthogonal([width, *config.hidden][-1], out_dim, gain)
        self.log_std = nn.Parameter(torch.zeros(out_dim)) if log_std else None

    def forward(self, obs: Tensor) -> Tensor:
        """Return the head's numbers (..., out_dim), with log standard deviations twice as many."""
        x = obs if self.encoder is None else self.encoder(obs)[0]
        out = self.head(self.body(x))
        if self.log_std is not None:
            out = torch.cat([out, self.log_std.expand_as(out)], dim=-1)
        return out

    def attention(self, obs: Tensor) -> dict[str, Tensor]:
        """Return the attention weights of every layer; see :class:`AttentionEncoder`."""
        if self.encoder is None:
            raise ValueError("this network has no attention")
        return self.encoder(obs, need_weights=True)[1]


# The learner --------------------------------------------------------------------------------------


class PPO:
    """PPO for R replicates at once, each on B environments of its own.

    Parameters
    ----------
    obs_dim : int
    n_actions : int
        Number of discrete actions, or parts of a continuous one.
    num_envs : int
        Environments B of each replicate.
    seeds : sequence of int
        One for each of R replicates.
    config : PPOConfig
        An :class:`AttentionPPOConfig` makes the networks attend.
    total_steps : int or None
        Steps of the whole training, for annealing; None for none.
    bounds : (low, high) arrays (A,) or None
        Limits of a continuous action, to which what is sampled is clipped; None if discrete.
    tokens : Tokens or None
        How the world arranges its observation; for attention.
    """

    def __init__(
        self,
        obs_dim: int,
        n_actions: int,
        num_envs: int,
        seeds: Sequence[int],
        config: PPOConfig | None = None,
        *,
        total_steps: int | None = None,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        tokens: Tokens | None = None,
        device: str | torch.device = "cpu",
    ):
        self.total_steps = total_steps
        self.config = c = PPOConfig() if config is None else config
        self.obs_dim, self.n_actions, self.num_envs = obs_dim, n_actions, num_envs
        self.seeds, self.device, self.bounds = list(seeds), torch.device(device), bounds
        self.distribution: type[Distribution] = DiagonalGaussian if bounds else Categorical
        fused = len(self.seeds) == 1

        def actor() -> nn.Module:
            return PPONetwork(obs_dim, n_actions, c, 0.01, tokens, fused, bounds is not None)

        def critic() -> nn.Module:
            return PPONetwork(obs_dim, 1, c, 1.0, tokens, fused)

        self.actor = Replicates(actor, self.seeds, device=device)
        self.critic = Replicates(critic, self.seeds, device=device)
        self._numbers = n_actions if bounds else 1  # random ones that an action is drawn with
        self.dropout = getattr(c, "dropout", 0.0) > 0
        for net in (self.actor, self.critic):
            net.train(False)
        nets = (self.actor, self.critic)
        self.optimizers = [Adam(net, c.learning_rate, eps=1e-5) for net in nets]
        count = None if tokens is None else tokens.count
        self.norm = RunningNorm(len(self.seeds), obs_dim, count, device=device)
        self.scale = RewardScale(len(self.seeds), num_envs, c.gamma, self.device)
        self.streams = RandomStreams(self.seeds, num_envs, "act")
        self.shuffle = RandomStreams(self.seeds, 1, "shuffle")
        self.data = self._make_rollout()
        self.t, self.steps = 0, 0  # steps in the rollout; environment steps of one replicate

    def _make_rollout(self) -> dict[str, Tensor]:
        shape = (len(self.seeds), self.config.rollout, self.num_envs)
        size = (self.n_actions,) if self.bounds else ()
        kinds = {
            "obs": ((self.obs_dim,), torch.float32),
            "next_obs": ((self.obs_dim,), torch.float32),
            "action": (size, torch.float32 if self.bounds else torch.int64),
            "reward": ((), torch.float32),
            "terminated": ((), torch.bool),
            "truncated": ((), torch.bool),
        }
        return {
            name: torch.zeros(*shape, *tail, dtype=kind, device=self.device)
            for name, (tail, kind) in kinds.items()
        }

    # Acting ---------------------------------------------------------------------------------------

    def _tensor(self, x: np.ndarray) -> Tensor:
        """Return an array (R × any, ...) as a tensor (R, any, ...)."""
        return torch.as_tensor(x, device=self.device).unflatten(0, (len(self.seeds), -1))

    def _seen(self, obs: Tensor) -> Tensor:
        """Return what the networks see of observations (R, any, D)."""
        return self.norm(obs) if self.config.normalise_obs else obs

    def seen_by(self, index: int, obs: np.ndarray) -> Tensor:
        """Return observations (n, D) as the networks of one replicate see them."""
        every = torch.as_tensor(obs, device=self.device).expand(len(self.seeds), *obs.shape)
        return self._seen(every)[index]

    @torch.no_grad()
    def distribution_of(self, obs: np.ndarray) -> Distribution:
        """Return the policy's distribution for observations (R × any, 1, D), over (R, any)."""
        return self.distribution(self.actor(self._seen(self._tensor(obs[:, 0]))))

    def _to_env(self, action: Tensor) -> np.ndarray:
        """Return actions (R, any[, A]) as an environment takes them, (R × any, 1[, A])."""
        out = action.flatten(0, 1).unsqueeze(1).numpy(force=True)
        return np.clip(out, *self.bounds) if self.bounds else out

    def policy(self, sampled: bool = False) -> Callable[[np.ndarray, dict[str, Any]], np.ndarray]:
        """Return the policy: the likeliest action or the mean, or one drawn as in training.

        What is drawn comes from streams of its own, the same each time.
        """
        if not sampled:
            return lambda obs, info: self._to_env(self.distribution_of(obs).mode())
        streams: list[RandomStreams] = []  # made when the number of rows is known

        def act(obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            if not streams:
                streams.append(RandomStreams(self.seeds, len(obs) // len(self.seeds), "judge"))
            noise = streams[0].uniform(self._numbers).astype(np.float32)
            return self._to_env(self.distribution_of(obs).sample(self._tensor(noise)))

        return act

    def act(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return sampled actions (R × B, 1[, A]) for observations (R × B, 1, D)."""
        noise = self.streams.uniform(self._numbers).astype(np.float32)
        action = self.distribution_of(obs).sample(self._tensor(noise))
        self.data["action"][:, self.t] = action
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
        """Add one step of all environments to the rollout."""
        row = {
            "obs": obs[:, 0],
            "next_obs": next_obs[:, 0],
            "reward": reward[:, 0],
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
        self.norm.update(self.data["obs"].flatten(1, 2))
        self.t = 0
        error = (batch["returns"] - batch["value"]).var(1)
        metrics["explained_variance"] = 1 - error / batch["returns"].var(1).clamp(min=1e-8)
        return {name: value.numpy(force=True) for name, value in metrics.items()}

    @torch.no_grad()
    def prepare(self) -> dict[str, Tensor]:
        """Return the rollout ready to learn from, tensors (R, T × B, ...).

        Everything is computed with the networks that acted, without dropout, so that the ratio of
        the first minibatch is one.
        """
        c, d = self.config, self.data
        obs = self._seen(d["obs"].flatten(1, 2))  # (R, T B, D)
        shape = d["reward"].shape
        value = self.critic(obs).view(shape)
        ended = d["terminated"] | d["truncated"]
        reward = self.scale(d["reward"], ended) if c.normalise_reward else d["reward"]
        advantage = generalised_advantage(
            reward, value, self._next_value(value), d["terminated"], ended, c.gamma, c.gae_lambda
        )
        action = d["action"].flatten(1, 2)
        return {
            "obs": obs,
            "action": action,
            "log_prob": self.distribution(self.actor(obs)).log_prob(action),
            "value": value.flatten(1),
            "advantage": advantage.flatten(1),
            "returns": (advantage + value).flatten(1),
        }

    def _next_value(self, value: Tensor) -> Tensor:
        """Return V of what each step led to (R, T, B), given V of what it started from.

        Where an episode ended, the next observation in the rollout belongs to another one; only
        there, and at the rollout's end, is the network asked again.
        """
        d = self.data
        last = self.critic(self._seen(d["next_obs"][:, -1])).squeeze(-1)  # (R, B)
        following = torch.cat([value[:, 1:], last.unsqueeze(1)], dim=1)
        if not d["truncated"].any():  # a terminated step has no use for it
            return following
        cut = d["truncated"].flatten(1)  # (R, T B)
        most = int(cut.sum(1).max())
        rows = cut.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # (R, most)
        which = rows.unsqueeze(-1).expand(-1, -1, self.obs_dim)
        final = self._seen(d["next_obs"].flatten(1, 2).gather(1, which))
        final_value = self.critic(final).squeeze(-1)
        flat = following.flatten(1)
        found = torch.where(cut.gather(1, rows), final_value, flat.gather(1, rows))
        return flat.scatter(1, rows, found).view_as(value)

    def losses(self, batch: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
        """Return the losses of a minibatch and what is watched, (R,) each.

        Parameters
        ----------
        batch : dict of tensors (R, n, ...)
            As :meth:`prepare` gives them.
        clip : float
            ε of equation 7.
        """
        c = self.config
        policy = self.distribution(self.actor(batch["obs"]))
        log_ratio = policy.log_prob(batch["action"]) - batch["log_prob"]  # (R, n)
        ratio, advantage = log_ratio.exp(), batch["advantage"]
        if c.normalise_advantage:
            spread = advantage.std(1, keepdim=True) + 1e-8
            advantage = (advantage - advantage.mean(1, keepdim=True)) / spread
        clipped = ratio.clamp(1 - clip, 1 + clip)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        if self.dropout:
            self.critic.train()
        value, returns = self.critic(batch["obs"]).squeeze(-1), batch["returns"]
        self.critic.train(False)
        error = (value - returns).square()
        if c.clip_value is not None:
            near = batch["value"] + (value - batch["value"]).clamp(-c.clip_value, c.clip_value)
            error = torch.maximum(error, (near - returns).square())
        with torch.no_grad():
            kl = (ratio - 1 - log_ratio).mean(1)  # J. Schulman, "Approximating KL divergence", 2020
            outside = ((ratio - 1).abs() > clip).float().mean(1)
        return {
            "policy_loss": -gain.mean(1),
            "value_loss": 0.5 * error.mean(1),
            "entropy": policy.entropy().mean(1),
            "approx_kl": kl,
            "clip_fraction": outside,
        }

    def _learn(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make all passes over the rollout; return the means of what was watched."""
        c, total = self.config, batch["value"].shape[1]
        parts = max(1, total // c.batch_size)
        begun = self.steps - c.rollout * self.num_envs  # when this rollout was begun
        left = remaining(begun, self.total_steps if c.anneal else None)
        for optimizer in self.optimizers:
            optimizer.learning_rate = c.learning_rate * left
        active = torch.ones(len(self.seeds), dtype=torch.bool, device=self.device)
        seen = []
        for _ in range(c.epochs):
            epoch = [
                self._step(part, c.clip_ratio * left, active)
                for part in minibatches(batch, parts, self.shuffle)
            ]
            seen += epoch
            if c.target_kl is not None:
                active &= torch.stack([m["approx_kl"] for m in epoch]).mean(0) <= c.target_kl
                if not active.any():
                    break
        return {name: torch.stack([m[name] for m in seen]).mean(0) for name in seen[0]}

    def _step(self, batch: dict[str, Tensor], clip: float, active: Tensor) -> dict[str, Tensor]:
        """Make one step of both optimisers; replicates that are not active stay as they are."""
        found = self.losses(batch, clip)
        actor_loss = found["policy_loss"] - self.config.entropy_coef * found["entropy"]
        nets = (self.actor, self.critic)
        for net in nets:
            net.zero_grad()
        (actor_loss + found["value_loss"]).sum().backward()
        norms = [net.clip_gradient(self.config.max_grad_norm) for net in nets]
        for optimizer in self.optimizers:
            optimizer.step(active)
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
            "scale": {**self.scale.norm.state_dict(), "total": self.scale.total.clone()},
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
        scale = dict(state["scale"])
        self.scale.total.copy_(scale.pop("total"))
        self.scale.norm.load_state_dict(scale)
        for name, streams in (("act", self.streams), ("shuffle", self.shuffle)):
            streams.load_state_dict({k: v.numpy() for k, v in state["streams"][name].items()})
        for name, x in self.data.items():
            x.copy_(state["data"][name])
        self.t, self.steps = state["t"], state["steps"]

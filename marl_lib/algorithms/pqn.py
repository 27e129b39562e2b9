"""Parallelised Q-learning (Gallici et al. 2024): no replay, no target network, but LayerNorm.

Read from top to bottom: configuration, network, acting, loss, update. Many environments give data
varied enough to learn from as they come, λ-returns carry rewards far in one pass, and LayerNorm
keeps bootstrapping stable. In a team the agents learn on their own, each from its own reward, or
together the sum of their values from the sum of their rewards (value decomposition, Sunehag et al.
2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from marl_lib.advantages import RewardScale, q_lambda_return
from marl_lib.config import choice, require
from marl_lib.exploration import decay, epsilon_greedy, remaining
from marl_lib.replay import minibatches
from marl_lib.replicates import Adam, Replicates
from marl_lib.seeding import RandomStreams

MIXERS = ("none", "sum")


@dataclass(frozen=True)
class PQNConfig:
    """Settings of PQN; steps are counted in environment steps of one replicate.

    Parameters
    ----------
    mixer : {"none", "sum"}
        Independent agents with rewards of their own, or one Q_tot = Σᵢ Qᵢ for the summed reward
        (PQN-VDN).
    gamma : float
        Discount, in [0, 1].
    lam : float
        λ of the returns, in [0, 1]: 0 is one-step Q-learning.
    learning_rate : float
        Of Adam.
    anneal : bool
        Let the learning rate go down linearly to zero over the whole training.
    rollout : int
        Steps T of each environment between updates.
    epochs : int
        Passes over a rollout.
    minibatches : int
        Equal parts into which a rollout is cut in each pass; the agents of a step stay together.
    epsilon_start, epsilon_end : float
        Probability of a random action, for each agent and environment on its own coin, going down
        linearly ...
    epsilon_steps : int
        ... over this many steps.
    max_grad_norm : float
        Longer gradients are scaled down.
    normalise_reward : bool
        Divide rewards by the running deviation of the discounted return, so that one learning rate
        suits worlds that pay in different coin.
    hidden : tuple of int
        Widths of the hidden layers.
    """

    mixer: Literal["none", "sum"] = "none"
    gamma: float = 0.99
    lam: float = 0.65
    learning_rate: float = 5e-4
    anneal: bool = True
    rollout: int = 32
    epochs: int = 2
    minibatches: int = 8
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_steps: int = 100_000
    max_grad_norm: float = 10.0
    normalise_reward: bool = True
    hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        choice("mixer", self.mixer, MIXERS)
        for key in ("gamma", "lam", "epsilon_start", "epsilon_end"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        for key in ("learning_rate", "max_grad_norm"):
            require(getattr(self, key) > 0, key, getattr(self, key), "positive")
        for key in ("rollout", "epochs", "minibatches"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.epsilon_steps >= 0, "epsilon_steps", self.epsilon_steps, "at least 0")
        require(all(h >= 1 for h in self.hidden), "hidden", self.hidden, "widths of at least 1")


@dataclass(frozen=True)
class PQNVDNConfig(PQNConfig):
    """Settings of PQN-VDN: those of :class:`PQNConfig` with the team's value as a sum."""

    mixer: Literal["none", "sum"] = "sum"


class NormedQNetwork(nn.Module):
    """Action values of one observation, ``(..., D) -> (..., A)``, LayerNorm before every ReLU.

    Parameters
    ----------
    size_in, n_actions : int
    hidden : sequence of int
        Widths of the hidden layers.
    """

    def __init__(self, size_in: int, n_actions: int, hidden: Sequence[int]):
        super().__init__()
        widths, layers = [size_in, *hidden], []
        for before, after in zip(widths, widths[1:], strict=False):
            layer = nn.Linear(before, after)
            nn.init.kaiming_normal_(layer.weight)  # as in the paper's code
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.LayerNorm(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], n_actions)

    def forward(self, x: Tensor) -> Tensor:
        """Return Q(x, ·), (..., A)."""
        out: Tensor = self.head(self.body(x))
        return out


class PQN:
    """R replicates of a team of N agents that share a network, on B environments each.

    Parameters
    ----------
    obs_dim, n_actions, n_agents : int
        Sizes of the world.
    num_envs : int
        B, environments of one replicate.
    seeds : sequence of int
        One for each of R replicates.
    config : PQNConfig
    total_steps : int or None
        Steps of the whole training, for annealing; None for none.
    action_masks : bool
        The world reports illegal actions; they are neither taken nor bootstrapped from.
    device : str

    Raises
    ------
    ConfigError
        If a rollout has fewer steps than minibatches.
    """

    def __init__(
        self,
        obs_dim: int,
        n_actions: int,
        n_agents: int,
        num_envs: int,
        seeds: Sequence[int],
        config: PQNConfig | None = None,
        *,
        total_steps: int | None = None,
        action_masks: bool = False,
        device: str | torch.device = "cpu",
    ):
        self.config = c = PQNConfig() if config is None else config
        most = c.rollout * num_envs
        require(c.minibatches <= most, "minibatches", c.minibatches, f"at most {most} here")
        self.obs_dim, self.n_actions, self.n_agents = obs_dim, n_actions, n_agents
        self.num_envs, self.total_steps = num_envs, total_steps
        self.seeds, self.device, self.action_masks = list(seeds), torch.device(device), action_masks
        # A shared network must know whose values it is asked for.
        self.ids = torch.eye(n_agents if n_agents > 1 else 0, device=device)

        def make() -> nn.Module:
            return NormedQNetwork(obs_dim + len(self.ids), n_actions, c.hidden)

        self.net = Replicates(make, self.seeds, device=device)
        self.optimizer = Adam(self.net, c.learning_rate, eps=1e-5)
        self.values = 1 if c.mixer == "sum" else n_agents  # what is learned of one step
        rows = num_envs * self.values
        self.scale = RewardScale(len(self.seeds), rows, c.gamma, self.device)
        self.streams = RandomStreams(self.seeds, num_envs, "explore")
        self.shuffle = RandomStreams(self.seeds, 1, "shuffle")
        self.data = self._make_rollout()
        self.t, self.steps = 0, 0  # steps in the rollout; environment steps of one replicate

    def _make_rollout(self) -> dict[str, Tensor]:
        shape, n = (len(self.seeds), self.config.rollout, self.num_envs), self.n_agents
        kinds = {
            "obs": ((n, self.obs_dim), torch.float32),
            "next_obs": ((n, self.obs_dim), torch.float32),
            "action": ((n,), torch.int64),
            "best": ((n,), torch.float32),  # max Q, found in acting
            "reward": ((n,), torch.float32),
            "terminated": ((), torch.bool),
            "truncated": ((), torch.bool),
        }
        if self.action_masks:
            kinds["next_mask"] = ((n, self.n_actions), torch.bool)
        return {
            name: torch.zeros(*shape, *tail, dtype=kind, device=self.device)
            for name, (tail, kind) in kinds.items()
        }

    # Acting ---------------------------------------------------------------------------------------

    def _tensor(self, x: np.ndarray) -> Tensor:
        """Return an array (R × any, ...) as a tensor (R, any, ...)."""
        return torch.as_tensor(x, device=self.device).unflatten(0, (len(self.seeds), -1))

    def q_values(self, obs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the action values of every agent, (R, any, N, D) -> (R, any, N, A).

        Where ``mask`` (R, any, N, A) is False they are -inf.
        """
        x = obs
        if len(self.ids):
            x = torch.cat([x, self.ids.expand(*x.shape[:2], *self.ids.shape)], dim=-1)
        q: Tensor = self.net(x.flatten(1, 2)).unflatten(1, obs.shape[1:3])
        return q if mask is None else q.masked_fill(~mask, -torch.inf)

    @torch.no_grad()
    def _best(self, obs: np.ndarray, info: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return max Q and the action that has it, (R, any, N) each."""
        mask = self._tensor(info["action_mask"]) if self.action_masks else None
        best = self.q_values(self._tensor(obs), mask).max(-1)
        return best.values, best.indices

    def policy(self) -> Callable[[np.ndarray, dict[str, Any]], np.ndarray]:
        """Return the greedy policy: ``(obs (R × any, N, D), info) -> action (R × any, N)``."""
        return lambda obs, info: self._best(obs, info)[1].flatten(0, 1).numpy(force=True)

    @property
    def epsilon(self) -> float:
        """Probability of a random action now."""
        c = self.config
        return decay(c.epsilon_start, c.epsilon_end, c.epsilon_steps, self.steps)

    def act(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return exploring actions (R × B, N) for observations (R × B, N, D)."""
        value, index = self._best(obs, info)
        self.data["best"][:, self.t] = value
        greedy = index.flatten(0, 1).numpy(force=True)
        draw = self.streams.uniform(2 * self.n_agents)
        return epsilon_greedy(greedy, self.epsilon, draw, self.n_actions, info)

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
            "action": action,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
        }
        if self.action_masks:
            row["next_mask"] = info["final_mask"]
        for name, value in row.items():
            self.data[name][:, self.t] = self._tensor(value)
        self.t += 1
        self.steps += self.num_envs

    # Learning -------------------------------------------------------------------------------------

    def update(self) -> dict[str, np.ndarray]:
        """Learn from the rollout if it is full.

        Returns
        -------
        dict of (R,) arrays, empty if it is not full: loss, q (of the actions taken), grad_norm,
        means over minibatches.
        """
        if self.t < self.config.rollout:
            return {}
        metrics = self._learn(self.prepare())
        self.t = 0
        return {name: value.numpy(force=True) for name, value in metrics.items()}

    def mix(self, q: Tensor) -> Tensor:
        """Return what is learned of the agents' values (..., N): themselves or their sum (..., 1).

        Rewards are mixed alike.
        """
        return q.sum(-1, keepdim=True) if self.config.mixer == "sum" else q

    @torch.no_grad()
    def prepare(self) -> dict[str, Tensor]:
        """Return observations, actions and returns, tensors (R, T × B, ...).

        The returns are (R, T × B, N) or, of the sum, (R, T × B, 1).
        """
        c, d = self.config, self.data
        reward, next_value = self.mix(d["reward"]), self.mix(self._next_best())
        shape = reward.shape  # (R, T, B, values)
        terminated = d["terminated"].unsqueeze(-1).expand(shape).flatten(2)
        ended = terminated | d["truncated"].unsqueeze(-1).expand(shape).flatten(2)
        reward = reward.flatten(2)  # (R, T, B × values)
        if c.normalise_reward:
            reward = self.scale(reward, ended)
        returns = q_lambda_return(
            reward, next_value.flatten(2), terminated, ended, c.gamma, c.lam
        ).view(shape)
        return {
            "obs": d["obs"].flatten(1, 2),
            "action": d["action"].flatten(1, 2),
            "returns": returns.flatten(1, 2),
        }

    def _next_best(self) -> Tensor:
        """Return max Q of what each step led to, (R, T, B, N).

        It was found in acting on the next step. But where an episode ended, that belongs to another
        one; so for steps at which one ran out of time, and for the last, it is asked for.
        """
        d = self.data
        ask = d["truncated"].any(2).any(0)  # (T,)
        ask[-1] = True
        final = d["next_obs"][:, ask]  # (R, asked, B, N, D)
        mask = d["next_mask"][:, ask].flatten(1, 2) if self.action_masks else None
        out = d["best"].roll(-1, dims=1)
        out[:, ask] = self.q_values(final.flatten(1, 2), mask).amax(-1).view(final.shape[:-1])
        return out

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return half the mean squared error and the mean value of the actions taken, (R,) each.

        Parameters
        ----------
        batch : dict of tensors (R, n, ...)
            As :meth:`prepare` gives them.
        """
        q = self.q_values(batch["obs"]).gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1)
        q = self.mix(q)
        return 0.5 * (q - batch["returns"]).square().mean((1, 2)), q.detach().mean((1, 2))

    def _learn(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make all passes over the rollout; return the means of what was watched."""
        c, seen = self.config, []
        begun = self.steps - c.rollout * self.num_envs  # when this rollout was begun
        left = remaining(begun, self.total_steps if c.anneal else None)
        self.optimizer.learning_rate = left * c.learning_rate
        for _ in range(c.epochs):
            for part in minibatches(batch, c.minibatches, self.shuffle):
                loss, q = self.loss(part)
                norm = self.net.backward(loss, c.max_grad_norm)
                self.optimizer.step()
                seen.append(torch.stack([loss.detach(), q, norm]))
        means = torch.stack(seen).mean(0)  # (3, R)
        return dict(zip(("loss", "q", "grad_norm"), means, strict=True))

    # Keeping --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that learning depends on, the unfinished rollout included."""
        streams = {"explore": self.streams.state_dict(), "shuffle": self.shuffle.state_dict()}
        return {
            "parameters": self.net.flat.clone(),
            "optimizer": self.optimizer.state_dict(),
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
        self.net.flat.copy_(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        scale = dict(state["scale"])
        self.scale.total.copy_(scale.pop("total"))
        self.scale.norm.load_state_dict(scale)
        for name, streams in (("explore", self.streams), ("shuffle", self.shuffle)):
            streams.load_state_dict({k: v.numpy() for k, v in state["streams"][name].items()})
        for name, x in self.data.items():
            x.copy_(state["data"][name])
        self.t, self.steps = state["t"], state["steps"]

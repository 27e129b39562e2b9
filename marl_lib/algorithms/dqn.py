"""Deep Q-learning (Mnih et al. 2015) for one agent or a team of independent learners.

Read from top to bottom: configuration, network, acting, loss, update. Each agent of a team learns
its own action values and treats the others as part of the world (Tan 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from marl_lib.config import require
from marl_lib.exploration import decay, epsilon_greedy, remaining
from marl_lib.replay import Replay
from marl_lib.replicates import Adam, Replicates
from marl_lib.seeding import RandomStreams


@dataclass(frozen=True)
class DQNConfig:
    """Settings of DQN; steps are counted in environment steps of one replicate.

    Parameters
    ----------
    gamma : float
        Discount, in [0, 1].
    learning_rate : float
        Of Adam.
    anneal : bool
        Let the learning rate go down linearly to zero over the whole training.
    batch_size : int
        Transitions (of the whole team) in an update.
    buffer_size : int
        Transitions kept.
    learning_starts : int
        Steps before the first update.
    train_every : int
        Steps between updates; with more environments than this, several updates follow each step
        of the batch, so the ratio of updates to experience does not depend on ``num_envs``.
    target_every : int
        Updates between copies of the network to the target network.
    epsilon_start, epsilon_end : float
        Probability of a random action, for each agent on its own coin, going down linearly ...
    epsilon_steps : int
        ... over this many steps.
    hidden : tuple of int
        Widths of the hidden layers.
    double : bool
        Choose the next action with the network, judge it with the target (van Hasselt et al. 2016).
    dueling : bool
        Split Q into a state value and advantages (Wang et al. 2016, equation 9).
    n_step : int
        Rewards summed before the bootstrap (Sutton and Barto 2018, section 7.1).
    share_parameters : bool
        One network for all agents, told apart by a one-hot id; otherwise one network each.
    max_grad_norm : float
        Gradients longer than this are scaled down, each network by its own norm.
    """

    gamma: float = 0.99
    learning_rate: float = 1e-3
    anneal: bool = False
    batch_size: int = 128
    buffer_size: int = 50_000
    learning_starts: int = 1_000
    train_every: int = 4
    target_every: int = 250
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_steps: int = 10_000
    hidden: tuple[int, ...] = (64, 64)
    double: bool = True
    dueling: bool = False
    n_step: int = 1
    share_parameters: bool = True
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        for key in ("epsilon_start", "epsilon_end"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        for key in ("learning_rate", "max_grad_norm"):
            require(getattr(self, key) > 0, key, getattr(self, key), "positive")
        for key in ("batch_size", "train_every", "target_every", "n_step", "buffer_size"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for key in ("learning_starts", "epsilon_steps"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        require(all(h >= 1 for h in self.hidden), "hidden", self.hidden, "widths of at least 1")


class QNetwork(nn.Module):
    """Action values of one observation, ``(..., D) -> (..., A)``.

    Parameters
    ----------
    obs_dim, n_actions : int
    hidden : sequence of int
        Widths of the hidden layers, with ReLU between.
    dueling : bool
        Q = V + A - mean(A), with V and A two linear heads.
    """

    def __init__(self, obs_dim: int, n_actions: int, hidden: Sequence[int], dueling: bool = False):
        super().__init__()
        widths = [obs_dim, *hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], n_actions)
        self.value = nn.Linear(widths[-1], 1) if dueling else None

    def forward(self, obs: Tensor) -> Tensor:
        """Return Q(obs, ·), (..., A)."""
        features = self.body(obs)
        q = self.head(features)  # (..., A)
        if self.value is not None:
            q = self.value(features) + q - q.mean(-1, keepdim=True)
        return q


def td_target(
    reward: Tensor,
    discount: Tensor,
    terminated: Tensor,
    next_q: Tensor,
    next_q_online: Tensor | None = None,
) -> Tensor:
    """Return r + γⁿ (1 - terminated) max Q(s', ·).

    Parameters
    ----------
    reward, discount, terminated : (...)
        Truncated transitions are not terminated: their value goes on.
    next_q : (..., A)
        Of the target network.
    next_q_online : (..., A) or None
        If given, it chooses the action and ``next_q`` judges it (double DQN).

    Source: Mnih et al. 2015; van Hasselt et al. 2016, equation 4.
    """
    if next_q_online is None:
        value = next_q.max(-1).values
    else:
        value = next_q.gather(-1, next_q_online.argmax(-1, keepdim=True)).squeeze(-1)
    # Filled, not multiplied by zero: where no action is legal any more, the value is not finite.
    return reward + discount * value.masked_fill(terminated, 0.0)


class DQN:
    """R replicates of a team of N independent Q-learners on B environments each.

    Parameters
    ----------
    obs_dim, n_actions, n_agents : int
        Sizes of the world.
    num_envs : int
        B, environments of one replicate.
    seeds : sequence of int
        One for each of R replicates.
    config : DQNConfig
    total_steps : int or None
        Steps of the whole training, for annealing; None for none.
    action_masks : bool
        The world reports illegal actions; they are neither taken nor bootstrapped from.
    device : str
    """

    def __init__(
        self,
        obs_dim: int,
        n_actions: int,
        n_agents: int,
        num_envs: int,
        seeds: Sequence[int],
        config: DQNConfig | None = None,
        *,
        total_steps: int | None = None,
        action_masks: bool = False,
        device: str | torch.device = "cpu",
    ):
        self.config = c = config or DQNConfig()
        least = c.n_step * num_envs
        require(c.buffer_size >= least, "buffer_size", c.buffer_size, f"at least {least} here")
        self.n_agents, self.n_actions, self.num_envs = n_agents, n_actions, num_envs
        self.seeds, self.device = list(seeds), torch.device(device)
        self.action_masks, self.total_steps = action_masks, total_steps
        self.one_network = c.share_parameters or n_agents == 1
        # A shared network must know whose values it is asked for.
        self.ids = torch.eye(n_agents, device=device) if c.share_parameters else None
        inputs = obs_dim + (n_agents if self.ids is not None and n_agents > 1 else 0)

        def make() -> nn.Module:
            return QNetwork(inputs, n_actions, c.hidden, c.dueling)

        self.net = Replicates(make, seeds, 1 if self.one_network else n_agents, device)
        self.target = self.net.flat.clone()
        self.optimizer = Adam(self.net, c.learning_rate)
        self.replay = self._make_replay(obs_dim)
        self.streams = RandomStreams(seeds, num_envs, "explore")
        self.steps = 0  # environment steps of one replicate
        self.updates = 0

    def _make_replay(self, obs_dim: int) -> Replay:
        n, c = self.n_agents, self.config
        fields: dict[str, Any] = {
            "obs": ((n, obs_dim), torch.float32),
            "action": ((n,), torch.int64),
            "next_obs": ((n, obs_dim), torch.float32),
        }
        if self.action_masks:
            fields["next_mask"] = ((n, self.n_actions), torch.bool)
        return Replay(c.buffer_size, self.num_envs, self.seeds, fields, (n,), self.device)

    # Acting ---------------------------------------------------------------------------------------

    def q_values(self, obs: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        """Return the action values of every agent, (R, batch, N, D) -> (R, batch, N, A)."""
        r, batch, n, _ = obs.shape
        if self.one_network:
            if n > 1:
                assert self.ids is not None
                obs = torch.cat([obs, self.ids.expand(r, batch, n, n)], dim=-1)
            return self.net(obs.flatten(1, 2), params=params).unflatten(1, (batch, n))
        q = self.net(obs.transpose(1, 2).flatten(0, 1), params=params)  # (R N, batch, A)
        return q.unflatten(0, (r, n)).transpose(1, 2)

    def policy(self) -> Callable[[np.ndarray, dict[str, Any]], np.ndarray]:
        """Return the greedy policy: ``(obs (R × any, N, D), info) -> action (R × any, N)``."""
        return lambda obs, info: self._greedy(obs, info).numpy(force=True)

    @torch.no_grad()
    def _greedy(self, obs: np.ndarray, info: dict[str, Any]) -> Tensor:
        x = torch.as_tensor(obs, device=self.device).unflatten(0, (len(self.seeds), -1))
        q = self.q_values(x).flatten(0, 1)
        if self.action_masks:
            q = q.masked_fill(~torch.as_tensor(info["action_mask"], device=self.device), -torch.inf)
        return q.argmax(-1)

    @property
    def epsilon(self) -> float:
        """Probability of a random action now."""
        c = self.config
        return decay(c.epsilon_start, c.epsilon_end, c.epsilon_steps, self.steps)

    def act(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return exploring actions (R × B, N) for observations (R × B, N, D)."""
        greedy = self._greedy(obs, info).numpy(force=True)
        draw = self.streams.uniform(2 * self.n_agents)
        return epsilon_greedy(greedy, self.epsilon, draw, self.n_actions, info)

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
        extra = {"next_mask": info["final_mask"]} if self.action_masks else {}
        self.replay.add(
            obs=obs,
            action=action,
            reward=reward,
            next_obs=next_obs,
            terminated=terminated,
            truncated=truncated,
            **extra,
        )
        self.steps += self.num_envs

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the Huber loss of the temporal-difference error, one for each network (G,)."""
        q = self.q_values(batch["obs"])  # (R, batch, N, A)
        q = q.gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            next_q = self.q_values(batch["next_obs"], self.net.views(self.target))
            online = self.q_values(batch["next_obs"]) if self.config.double else None
            if self.action_masks:
                next_q = next_q.masked_fill(~batch["next_mask"], -torch.inf)
                online = None if online is None else online.masked_fill(next_q.isinf(), -torch.inf)
            discount, ended = batch["discount"].unsqueeze(-1), batch["terminated"].unsqueeze(-1)
            target = td_target(batch["reward"], discount, ended, next_q, online)
        error = smooth_l1_loss(q, target, reduction="none")  # (R, batch, N)
        return error.mean((1, 2)) if self.one_network else error.mean(1).flatten()

    def update(self) -> dict[str, np.ndarray]:
        """Learn as often as the steps seen since the last call ask for.

        Returns
        -------
        dict of (R,) arrays: ``loss`` and ``grad_norm`` of the last update; empty if there was none.
        """
        c = self.config
        due = max(0, self.steps - c.learning_starts) // c.train_every - self.updates
        if self.replay.size < c.n_step or self.steps < c.learning_starts:
            return {}
        metrics: dict[str, np.ndarray] = {}
        for _ in range(due):
            metrics = self.learn_once()
        return metrics

    def learn_once(self) -> dict[str, np.ndarray]:
        """Make one update, due or not; return the figures of :meth:`update`."""
        c = self.config
        loss = self.loss(self.replay.sample(c.batch_size, c.n_step, c.gamma))
        norm = self.net.backward(loss, c.max_grad_norm)
        left = remaining(self.steps, self.total_steps if c.anneal else None)
        self.optimizer.learning_rate = left * c.learning_rate
        self.optimizer.step()
        self.updates += 1
        if self.updates % c.target_every == 0:
            self.target.copy_(self.net.flat)
        per_replicate = (len(self.seeds), -1)
        return {
            "loss": loss.detach().view(per_replicate).mean(1).numpy(force=True),
            "grad_norm": norm.view(per_replicate).mean(1).numpy(force=True),
        }

    # Keeping --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that learning depends on, the replay included."""
        return {
            "parameters": self.net.flat.clone(),
            "target": self.target.clone(),
            "optimizer": self.optimizer.state_dict(),
            "streams": {k: torch.from_numpy(v) for k, v in self.streams.state_dict().items()},
            "steps": self.steps,
            "updates": self.updates,
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the learner that wrote ``state`` stood."""
        self.net.flat.copy_(state["parameters"])
        self.target.copy_(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.streams.load_state_dict({k: v.numpy() for k, v in state["streams"].items()})
        self.steps, self.updates = state["steps"], state["updates"]
        self.replay.load_state_dict(state["replay"])

"""MADDPG: actors that see their own observation, critics that see everything (Lowe et al. 2017).

Read from top to bottom: configuration, networks, acting, losses, update. Source: R. Lowe et al.,
"Multi-agent actor-critic for mixed cooperative-competitive environments", 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from marl_lib.config import require
from marl_lib.exploration import decay, remaining
from marl_lib.nn.distributions import gumbel, gumbel_softmax, standard_normal
from marl_lib.nn.layers import mlp
from marl_lib.replay import Replay
from marl_lib.replicates import Adam, Replicates
from marl_lib.seeding import RandomStreams


@dataclass(frozen=True)
class MADDPGConfig:
    """Settings of MADDPG; steps are counted in environment steps of one replicate.

    Parameters
    ----------
    gamma : float
        Discount, in [0, 1].
    actor_learning_rate, critic_learning_rate : float
        Of Adam.
    anneal : bool
        Let both learning rates go down linearly to zero over the whole training.
    batch_size : int
        Transitions (of the whole team) in an update.
    buffer_size : int
        Transitions kept.
    learning_starts : int
        Steps before the first update; until then actions are uniform.
    train_every : int
        Steps between updates; with more environments than this, several updates follow each step
        of the batch, so the ratio of updates to experience does not depend on ``num_envs``.
    tau : float
        Share of the networks that goes into the targets at each update (Polyak averaging).
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
    shared : bool
        One actor and one critic for all agents, told apart by a one-hot id; otherwise, as in the
        paper, one of each for every agent.
    team_reward : bool
        Every critic learns from the sum of the agents' rewards; otherwise each from its agent's own
        reward. Shared networks need a single value then.
    hidden : tuple of int
        Widths of the hidden layers, of actors and critics.
    max_grad_norm : float
        Gradients longer than this are scaled down, each network by its own norm.
    """

    gamma: float = 0.95
    actor_learning_rate: float = 1e-2
    critic_learning_rate: float = 1e-2
    anneal: bool = False
    batch_size: int = 1024
    buffer_size: int = 1_000_000
    learning_starts: int = 25_600
    train_every: int = 100
    tau: float = 0.01
    noise_start: float = 0.3
    noise_end: float = 0.1
    noise_steps: int = 100_000
    temperature: float = 1.0
    actor_penalty: float = 1e-3
    shared: bool = True
    team_reward: bool = False
    hidden: tuple[int, ...] = (64, 64)
    max_grad_norm: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        require(0 < self.tau <= 1, "tau", self.tau, "in (0, 1]")
        positive = ("actor_learning_rate", "critic_learning_rate", "temperature", "max_grad_norm")
        for key in positive:
            require(getattr(self, key) > 0, key, getattr(self, key), "positive")
        for key in ("batch_size", "train_every", "buffer_size"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for key in ("noise_start", "noise_end", "noise_steps", "actor_penalty", "learning_starts"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        require(all(h >= 1 for h in self.hidden), "hidden", self.hidden, "widths of at least 1")


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


class MADDPG:
    """R replicates of a team of N agents on B environments each.

    Inside, an action is a vector: continuous ones scaled to [-1, 1], discrete ones one-hot. The
    state is the observations of all agents side by side.

    Parameters
    ----------
    obs_dim : int
    n_actions : int
        Discrete actions, or parts of a continuous one, A.
    n_agents : int
    num_envs : int
        B, environments of one replicate.
    seeds : sequence of int
        One for each of R replicates.
    config : MADDPGConfig
    total_steps : int or None
        Steps of the whole training, for annealing; None for none.
    bounds : pair of arrays (A,) or None
        Least and greatest continuous action, finite; None for discrete actions.
    action_masks : bool
        The world reports illegal discrete actions; they are never taken, and no target rests on
        them.
    device : str

    Raises
    ------
    ConfigError
        If the bounds are not finite or not in order, or come with masks.
    """

    def __init__(
        self,
        obs_dim: int,
        n_actions: int,
        n_agents: int,
        num_envs: int,
        seeds: Sequence[int],
        config: MADDPGConfig | None = None,
        *,
        total_steps: int | None = None,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        action_masks: bool = False,
        device: str | torch.device = "cpu",
    ):
        self.config = c = MADDPGConfig() if config is None else config
        require(
            c.buffer_size >= num_envs, "buffer_size", c.buffer_size, f"at least {num_envs} here"
        )
        self.n_agents, self.n_actions, self.num_envs = n_agents, n_actions, num_envs
        self.total_steps = total_steps
        self.seeds, self.device = list(seeds), torch.device(device)
        self.continuous, self.action_masks = bounds is not None, action_masks
        if bounds is not None:
            require(not action_masks, "action_masks", action_masks, "false for continuous actions")
            self._set_bounds(*bounds)
        self.one_network = c.shared or n_agents == 1
        self.one_value = self.one_network and (c.team_reward or n_agents == 1)
        self.ids = torch.eye(n_agents, device=self.device)
        known = n_agents if self.one_network and n_agents > 1 else 0  # size of the id
        seen = n_agents * (obs_dim + n_actions) + (0 if self.one_value else known)
        copies = 1 if self.one_network else n_agents
        self.actor = Replicates(
            lambda: mlp(obs_dim + known, c.hidden, n_actions), seeds, copies, self.device
        )
        self.critic = Replicates(lambda: mlp(seen, c.hidden, 1), seeds, copies, self.device)
        self.targets = {"actor": self.actor.flat.clone(), "critic": self.critic.flat.clone()}
        self.optimizers = {
            "actor": Adam(self.actor, c.actor_learning_rate),
            "critic": Adam(self.critic, c.critic_learning_rate),
        }
        self.replay = self._make_replay(obs_dim)
        self.streams = {
            "act": RandomStreams(seeds, num_envs, "act"),
            "learn": RandomStreams(seeds, 1, "learn"),
        }
        self._legal = np.ones(0, bool)  # masks of the observations that were last acted on
        self.steps = 0  # environment steps of one replicate
        self.updates = 0

    def _set_bounds(self, low: np.ndarray, high: np.ndarray) -> None:
        ok = np.isfinite([low, high]).all() and (np.asarray(low) < np.asarray(high)).all()
        require(bool(ok), "bounds", (low, high), "finite and in order")
        self._low = torch.as_tensor(low, dtype=torch.float32, device=self.device)
        self._high = torch.as_tensor(high, dtype=torch.float32, device=self.device)

    def _make_replay(self, obs_dim: int) -> Replay:
        n, a, c = self.n_agents, self.n_actions, self.config
        fields: dict[str, Any] = {
            "obs": ((n, obs_dim), torch.float32),
            "action": ((n, a), torch.float32) if self.continuous else ((n,), torch.int64),
            "next_obs": ((n, obs_dim), torch.float32),
        }
        if self.action_masks:
            fields["mask"] = fields["next_mask"] = ((n, a), torch.bool)
        return Replay(c.buffer_size, self.num_envs, self.seeds, fields, (n,), self.device)

    # What the networks say ------------------------------------------------------------------------

    def _each(
        self, net: Replicates, x: Tensor, ids: bool, params: dict[str, Tensor] | None
    ) -> Tensor:
        """Run every agent's network on its own rows, (R, batch, N, in) -> (R, batch, N, out)."""
        r, batch, n, _ = x.shape
        if self.one_network:
            if ids:
                x = torch.cat([x, self.ids.expand(r, batch, n, n)], dim=-1)
            return net(x.flatten(1, 2), params=params).unflatten(1, (batch, n))
        out = net(x.transpose(1, 2).flatten(0, 1), params=params)  # (R N, batch, out)
        return out.unflatten(0, (r, n)).transpose(1, 2)

    def actor_output(self, obs: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        """Return what the actors say before tanh or softmax, (R, batch, N, D) -> (…, N, A)."""
        return self._each(self.actor, obs, self.n_agents > 1, params)

    def q_values(
        self, obs: Tensor, action: Tensor, params: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Return every agent's value of a joint action.

        Parameters
        ----------
        obs : (R, batch, N, D)
        action : (R, batch, N, A), or (R, batch, N, N, A) for one joint action an agent

        Returns
        -------
        Tensor (R, batch, N), or (R, batch, 1) where one value serves all and judges one action.
        """
        if action.dim() == 4:
            values = 1 if self.one_value else self.n_agents
            action = action.unsqueeze(2).expand(-1, -1, values, -1, -1)
        state = obs.flatten(2).unsqueeze(2).expand(-1, -1, action.shape[2], -1)
        x = torch.cat([state, action.flatten(3)], dim=-1)
        return self._each(self.critic, x, not self.one_value, params).squeeze(-1)

    def _vector(self, action: Tensor) -> Tensor:
        """Return actions of the world (..., N[, A]) as the networks take them, (..., N, A)."""
        if not self.continuous:
            return one_hot(action, self.n_actions).float()
        return (action - self._low) * (2 / (self._high - self._low)) - 1

    # Acting ---------------------------------------------------------------------------------------

    def _tensor(self, x: np.ndarray) -> Tensor:
        """Return an array (R × any, ...) as a tensor (R, any, ...)."""
        return torch.as_tensor(x, device=self.device).unflatten(0, (len(self.seeds), -1))

    def _say(self, obs: np.ndarray, info: dict[str, Any]) -> Tensor:
        """Return what the actors say about observations (R × any, N, D), -∞ for what is illegal."""
        out = self.actor_output(self._tensor(obs))
        if self.action_masks:
            out = out.masked_fill(~self._tensor(info["action_mask"]), -torch.inf)
        return out

    def _noise(self, streams: RandomStreams, rows: int = 1) -> Tensor:
        """Return the next uniform numbers of every stream, (R, any × rows, N, A)."""
        size = (self.n_agents, self.n_actions)
        uniform = streams.uniform(rows * size[0] * size[1]).astype(np.float32)
        return self._tensor(uniform).unflatten(-1, (rows, *size)).flatten(1, 2)

    def _to_env(self, action: Tensor) -> np.ndarray:
        """Return actions (R, any, N, A) as an environment takes them, (R × any, N[, A])."""
        action = action.flatten(0, 1)
        if not self.continuous:
            return action.argmax(-1).numpy(force=True)
        share = (action.clamp(-1, 1) + 1) / 2
        # Rounding may put an action a digit beyond its bound.
        inside = (self._low + share * (self._high - self._low)).clamp(self._low, self._high)
        return inside.numpy(force=True)

    def _explore(self, out: Tensor, noise: Tensor) -> Tensor:
        """Return actions with noise, from what the actors say and uniform numbers."""
        if not self.continuous:
            return out + gumbel(noise)  # the place of the maximum is a draw from softmax(out)
        c = self.config
        scale = decay(c.noise_start, c.noise_end, c.noise_steps, self.steps)
        return out.tanh() + scale * standard_normal(noise)

    @torch.no_grad()
    def act(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return exploring actions (R × B, N[, A]) for observations (R × B, N, D)."""
        if self.action_masks:
            self._legal = info["action_mask"].copy()
        out, noise = self._say(obs, info), self._noise(self.streams["act"])
        if self.steps >= self.config.learning_starts:
            return self._to_env(self._explore(out, noise))
        # The greatest of equally distributed numbers: every legal action has the same chance.
        anything = 2 * noise - 1 if self.continuous else noise.masked_fill(out.isinf(), -torch.inf)
        return self._to_env(anything)

    def policy(self, sampled: bool = False) -> Callable[[np.ndarray, dict[str, Any]], np.ndarray]:
        """Return the policy: the actors' own actions, or those with the noise of training.

        What is drawn comes from streams of its own, the same each time.
        """
        streams: list[RandomStreams] = []  # made when the number of rows is known

        @torch.no_grad()
        def act(obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            out = self._say(obs, info)
            if not sampled:
                return self._to_env(out.tanh() if self.continuous else out)
            if not streams:
                streams.append(RandomStreams(self.seeds, len(obs) // len(self.seeds), "judge"))
            return self._to_env(self._explore(out, self._noise(streams[0])))

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
        """Store one step of all environments; ``next_obs`` is ``info["final_obs"]``.

        With masks, what was legal in ``obs`` is known from :meth:`act`, which comes before.
        """
        masks = {"mask": self._legal, "next_mask": info["final_mask"]} if self.action_masks else {}
        self.replay.add(
            obs=obs,
            action=action,
            reward=reward,
            next_obs=next_obs,
            terminated=terminated,
            truncated=truncated,
            **masks,
        )
        self.steps += self.num_envs

    @torch.no_grad()
    def td_target(self, batch: dict[str, Tensor]) -> Tensor:
        """Return r + γ (1 - terminated) Q'(s', μ'(o')), equation 6, (R, batch, N or 1).

        A truncated transition is not terminated: its value goes on. Discrete actions are the
        target actors' likeliest ones.
        """
        c = self.config
        out = self.actor_output(batch["next_obs"], self.actor.views(self.targets["actor"]))
        if self.action_masks:
            out = out.masked_fill(~batch["next_mask"], -torch.inf)
        action = out.tanh() if self.continuous else self._vector(out.argmax(-1))
        value = self.q_values(batch["next_obs"], action, self.critic.views(self.targets["critic"]))
        value = value.masked_fill(batch["terminated"].unsqueeze(-1), 0.0)
        reward = batch["reward"]  # (R, batch, N)
        if c.team_reward:
            reward = reward.sum(-1, keepdim=True)
        return reward + c.gamma * value

    def critic_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean squared error of every critic, (R,) or (R N,), equation 6."""
        q = self.q_values(batch["obs"], self._vector(batch["action"]))
        return self._per_network((q - self.td_target(batch)).square())

    def actor_loss(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Return minus the mean value of what every actor would do, (R,) or (R N,), equation 5.

        In the joint action only the agent's own part is its policy's; the others are those of the
        replay. The gradient reaches the actor through that part; the critics are held fixed.

        Parameters
        ----------
        batch : dict of tensors (R, batch, ...)
        noise : (R, batch, N, A) uniform, for discrete actions
        """
        c = self.config
        out = self.actor_output(batch["obs"])
        if noise is None:
            action = out.tanh()
        else:
            legal = out.masked_fill(~batch["mask"], -torch.inf) if self.action_masks else out
            action = gumbel_softmax(legal, noise, c.temperature)
        joint = replaced(action, self._vector(batch["action"]))
        q = self.q_values(batch["obs"], joint, self.critic.views(self.critic.flat))
        return self._per_network(c.actor_penalty * out.square().mean(-1) - q)

    def _per_network(self, x: Tensor) -> Tensor:
        """Return means (R, batch, N) -> (R,), or (R N,) where every agent has its own network."""
        return x.mean((1, 2)) if self.one_network else x.mean(1).flatten()

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
        dict of (R,) arrays, means over the agents: critic_loss, actor_loss, critic_grad_norm,
        actor_grad_norm (before clipping).
        """
        c = self.config
        left = remaining(self.steps, self.total_steps if c.anneal else None)
        self.optimizers["actor"].learning_rate = left * c.actor_learning_rate
        self.optimizers["critic"].learning_rate = left * c.critic_learning_rate
        batch = self.replay.sample(c.batch_size)
        noise = None if self.continuous else self._noise(self.streams["learn"], c.batch_size)

        critic_loss = self.critic_loss(batch)
        critic_norm = self.critic.backward(critic_loss, c.max_grad_norm)
        self.optimizers["critic"].step()

        actor_loss = self.actor_loss(batch, noise)
        actor_norm = self.actor.backward(actor_loss, c.max_grad_norm)
        self.optimizers["actor"].step()

        self.targets["critic"].lerp_(self.critic.flat, c.tau)
        self.targets["actor"].lerp_(self.actor.flat, c.tau)
        self.updates += 1
        found = {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "critic_grad_norm": critic_norm,
            "actor_grad_norm": actor_norm,
        }
        shape = (len(self.seeds), -1)
        return {k: v.detach().view(shape).mean(1).numpy(force=True) for k, v in found.items()}

    # Keeping --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that learning depends on, the replay included."""
        return {
            "actor": self.actor.flat.clone(),
            "critic": self.critic.flat.clone(),
            "targets": {name: x.clone() for name, x in self.targets.items()},
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
        self.actor.flat.copy_(state["actor"])
        self.critic.flat.copy_(state["critic"])
        for name, x in self.targets.items():
            x.copy_(state["targets"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        for name, streams in self.streams.items():
            streams.load_state_dict({k: v.numpy() for k, v in state["streams"][name].items()})
        self.steps, self.updates = state["steps"], state["updates"]
        self.replay.load_state_dict(state["replay"])

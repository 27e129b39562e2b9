"""QMIX (Rashid et al. 2018) and VDN (Sunehag et al. 2018): a team's value from its agents' values.

Read from top to bottom: configuration, networks, acting, loss, update. Each agent has action values
of its own observation, or of all it has seen; a mixer makes one value of those of the actions taken
and learns with them from the team's reward, the sum over the agents. Since the mixer only rises
with each agent's value, each agent's best action is its part of the team's best, so in execution
there is no mixer and nothing to share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from marl_lib.config import choice, require
from marl_lib.exploration import decay, epsilon_greedy, remaining
from marl_lib.nn.mixing import MonotonicMixer, SumMixer
from marl_lib.nn.recurrent import GRUCell, run_cell
from marl_lib.replay import Replay
from marl_lib.replicates import Adam, Replicates
from marl_lib.seeding import RandomStreams

MIXERS = ("monotonic", "sum")


@dataclass(frozen=True)
class QMIXConfig:
    """Settings of QMIX and VDN; steps are counted in environment steps of one replicate.

    Parameters
    ----------
    mixer : {"monotonic", "sum"}
        QMIX, or VDN.
    recurrent : bool
        Agents with a memory, as in the paper; without one they know their observation alone.
    gamma : float
        Discount, in [0, 1].
    learning_rate : float
        Of Adam.
    anneal : bool
        Let the learning rate go down linearly to zero over the whole training.
    batch_size : int
        Transitions (of the whole team) in an update; stretches, if recurrent.
    buffer_size : int
        Transitions kept.
    learning_starts : int
        Steps before the first update.
    train_every : int
        Steps between updates; with more environments than this, several updates follow each step
        of the batch, so the ratio of updates to experience does not depend on ``num_envs``.
    target_every : int
        Updates between copies of the networks to the target networks.
    epsilon_start, epsilon_end : float
        Probability of a random action, for each agent on its own coin, going down linearly ...
    epsilon_steps : int
        ... over this many steps.
    hidden : tuple of int
        Widths of the agents' hidden layers.
    memory : int
        Length of a recurrent agent's state, between the last hidden layer and the values.
    mixer_width, hyper_width : int
        See :class:`marl_lib.nn.mixing.MonotonicMixer`.
    double : bool
        Choose the next actions with the network, judge them with the target (van Hasselt et al.
        2016).
    n_step : int
        Rewards summed before the bootstrap (Sutton and Barto 2018, section 7.1); 1 if recurrent.
    sequence_length : int
        Steps of a stretch, if recurrent, ``burn_in`` included.
    burn_in : int
        Steps of it that only fill the memory.
    share_parameters : bool
        One network for all agents, told apart by a one-hot id; otherwise one network each.
    max_grad_norm : float
        Longer gradients are scaled down, each network (mixer and agents) by its own norm.
    """

    mixer: Literal["monotonic", "sum"] = "monotonic"
    recurrent: bool = False
    gamma: float = 0.99
    learning_rate: float = 1e-3
    anneal: bool = False
    batch_size: int = 128
    buffer_size: int = 50_000
    learning_starts: int = 1_000
    train_every: int = 4
    target_every: int = 200
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_steps: int = 50_000
    hidden: tuple[int, ...] = (64, 64)
    memory: int = 64
    mixer_width: int = 32
    hyper_width: int = 64
    double: bool = True
    n_step: int = 1
    sequence_length: int = 16
    burn_in: int = 4
    share_parameters: bool = True
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        choice("mixer", self.mixer, MIXERS)
        require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        for key in ("epsilon_start", "epsilon_end"):
            require(0 <= getattr(self, key) <= 1, key, getattr(self, key), "in [0, 1]")
        for key in ("learning_rate", "max_grad_norm"):
            require(getattr(self, key) > 0, key, getattr(self, key), "positive")
        counts = ("batch_size", "buffer_size", "train_every", "target_every", "n_step", "memory")
        for key in (*counts, "mixer_width", "hyper_width", "sequence_length"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for key in ("learning_starts", "epsilon_steps"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        require(all(h >= 1 for h in self.hidden), "hidden", self.hidden, "widths of at least 1")
        rule = f"at least 0 and less than sequence_length, {self.sequence_length}"
        require(0 <= self.burn_in < self.sequence_length, "burn_in", self.burn_in, rule)
        require(not self.recurrent or self.n_step == 1, "n_step", self.n_step, "1 if recurrent")

    @property
    def reach(self) -> int:
        """Successive steps that a draw from the replay needs."""
        return self.sequence_length if self.recurrent else self.n_step


@dataclass(frozen=True)
class VDNConfig(QMIXConfig):
    """Settings of VDN: those of :class:`QMIXConfig` with the sum as mixer."""

    mixer: Literal["monotonic", "sum"] = "sum"


# Networks -----------------------------------------------------------------------------------------


class Agent(nn.Module):
    """Action values of one agent.

    Parameters
    ----------
    size_in, n_actions : int
    hidden : sequence of int
        Widths of the hidden layers, each with ReLU.
    memory : int or None
        Length H of the state of a GRU after them; None for no memory.
    """

    def __init__(self, size_in: int, n_actions: int, hidden: Sequence[int], memory: int | None):
        super().__init__()
        widths = [size_in, *hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.cell = GRUCell(widths[-1], memory) if memory else None
        self.head = nn.Linear(memory or widths[-1], n_actions)

    def forward(self, obs: Tensor, first: Tensor | None = None, state: Tensor | None = None) -> Any:
        """Return Q (..., A) of observations (..., D); with a memory, of whole sequences.

        Parameters
        ----------
        obs : (..., D), or (..., T, D) with a memory
        first, state : (..., T) bool, (..., H)
            With a memory: where episodes begin, and what is remembered before the first step.

        Returns
        -------
        Q (..., A), or the pair of Q (..., T, A) and the states after each step (..., T, H)
        """
        features = self.body(obs)
        if self.cell is None:
            return self.head(features)
        assert first is not None and state is not None
        states = run_cell(self.cell, features, first, state)
        return self.head(states), states


# The learner --------------------------------------------------------------------------------------


class QMIX:
    """R replicates of a team of N agents, on B environments each, that learn a joint value.

    Parameters
    ----------
    obs_dim, n_actions, n_agents : int
        Sizes of the world.
    num_envs : int
        B, environments of one replicate.
    seeds : sequence of int
        One for each of R replicates.
    config : QMIXConfig
    total_steps : int or None
        Steps of the whole training, for annealing; None for none.
    action_masks : bool
        The world reports illegal actions; they are neither taken nor bootstrapped from.
    device : str

    Notes
    -----
    The state that the mixer sees is the observations of all agents, side by side.

    Stretches for agents with memory begin with an empty one and fill it over ``burn_in`` steps
    (Kapturowski et al. 2019 compare this with storing the state). Stored states would take more
    room than all else that is stored, go stale as the network learns, and bring little where
    episodes are short: wherever one begins within a stretch, the empty memory is exact.
    """

    def __init__(
        self,
        obs_dim: int,
        n_actions: int,
        n_agents: int,
        num_envs: int,
        seeds: Sequence[int],
        config: QMIXConfig | None = None,
        *,
        total_steps: int | None = None,
        action_masks: bool = False,
        device: str | torch.device = "cpu",
    ):
        self.config = c = config or QMIXConfig()
        least = c.reach * num_envs
        require(c.buffer_size >= least, "buffer_size", c.buffer_size, f"at least {least} here")
        self.obs_dim, self.n_actions, self.n_agents = obs_dim, n_actions, n_agents
        self.num_envs, self.seeds, self.total_steps = num_envs, list(seeds), total_steps
        self.device, self.action_masks = torch.device(device), action_masks
        self.one_network = c.share_parameters or n_agents == 1
        # A shared network must know whose values it is asked for.
        self.ids = torch.eye(n_agents, device=device) if self.one_network and n_agents > 1 else None
        inputs = obs_dim + (0 if self.ids is None else n_agents)

        def agent() -> nn.Module:
            return Agent(inputs, n_actions, c.hidden, c.memory if c.recurrent else None)

        def mixer() -> nn.Module:
            return MonotonicMixer(n_agents, n_agents * obs_dim, c.mixer_width, c.hyper_width)

        self.agents = Replicates(agent, seeds, 1 if self.one_network else n_agents, device)
        self.mixer = None if c.mixer == "sum" else Replicates(mixer, seeds, device=device)
        self.nets = [self.agents] if self.mixer is None else [self.agents, self.mixer]
        self.targets = [net.flat.detach().clone() for net in self.nets]
        self.optimizers = [Adam(net, c.learning_rate) for net in self.nets]
        self.replay = self._make_replay()
        self.streams = RandomStreams(seeds, num_envs, "explore")
        self.memory = self._no_memory(num_envs)  # of the agents as they act, (R, B, N, H)
        self.steps = 0  # environment steps of one replicate
        self.updates = 0

    def _make_replay(self) -> Replay:
        n, c = self.n_agents, self.config
        fields: dict[str, Any] = {
            "obs": ((n, self.obs_dim), torch.float32),
            "action": ((n,), torch.int64),
            "next_obs": ((n, self.obs_dim), torch.float32),
        }
        if self.action_masks:
            fields["next_mask"] = ((n, self.n_actions), torch.bool)
        # What the team is paid: one number.
        return Replay(c.buffer_size, self.num_envs, self.seeds, fields, (), self.device)

    def _no_memory(self, rows: int) -> Tensor:
        """Return empty memories (R, rows, N, H), with H = 0 for agents without."""
        size = self.config.memory if self.config.recurrent else 0
        return torch.zeros(len(self.seeds), rows, self.n_agents, size, device=self.device)

    # Values ---------------------------------------------------------------------------------------

    def _by_network(self, x: Tensor) -> Tensor:
        """Return (R, batch, N, ...) as the networks take it.

        That is (R, batch N, ...) where all agents share one, else (R N, batch, ...).
        """
        return x.flatten(1, 2) if self.one_network else x.transpose(1, 2).flatten(0, 1)

    def _by_agent(self, x: Tensor) -> Tensor:
        """Undo :meth:`_by_network`."""
        if self.one_network:
            return x.unflatten(1, (-1, self.n_agents))
        return x.unflatten(0, (-1, self.n_agents)).transpose(1, 2)

    def _seen(self, obs: Tensor) -> Tensor:
        """Return observations (..., N, D) with the agents' ids, where one network serves all."""
        if self.ids is None:
            return obs
        return torch.cat([obs, self.ids.expand(*obs.shape[:-1], self.n_agents)], dim=-1)

    def q_values(self, obs: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        """Return the action values of agents without memory, (R, batch, N, D) -> (R, batch, N, A).

        Parameters
        ----------
        obs : (R, batch, N, D)
        params : dict or None
            Of other networks than the present ones.
        """
        return self._by_agent(self.agents(self._by_network(self._seen(obs)), params=params))

    def q_sequence(
        self, obs: Tensor, first: Tensor, memory: Tensor, params: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the action values of agents with memory along sequences, and their memories.

        Parameters
        ----------
        obs : (R, batch, T, N, D)
        first : (R, batch, T) bool
            Where an episode begins.
        memory : (R, batch, N, H)
            Before the first step.

        Returns
        -------
        q : (R, batch, T, N, A)
        memory : (R, batch, T, N, H), after each step
        """
        each = first.unsqueeze(2).expand(-1, -1, self.n_agents, -1)  # (R, batch, N, T)
        rows = (self._seen(obs).transpose(2, 3), each, memory)
        q, after = self.agents(*(self._by_network(x) for x in rows), params=params)
        return self._by_agent(q).transpose(2, 3), self._by_agent(after).transpose(2, 3)

    def mix(self, q: Tensor, state: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        """Return Q_tot of the values q (R, batch, N) in the state (R, batch, S), (R, batch)."""
        if self.mixer is None:
            return SumMixer()(q, state)
        return self.mixer(q, state, params=params)

    @torch.no_grad()
    def joint_table(self, obs: np.ndarray, replicate: int = 0) -> np.ndarray:
        """Return Q_tot of all joint actions of a team of two, (A, A), first agent by row.

        Parameters
        ----------
        obs : (N, D)
            With memory: the first of an episode.
        replicate : int

        Raises
        ------
        ValueError
            If there are not two agents.
        """
        if self.n_agents != 2:
            raise ValueError(f"a joint table is for two agents, not {self.n_agents}")
        r, a = len(self.seeds), self.n_actions
        x = torch.as_tensor(obs, dtype=torch.float32, device=self.device).expand(r, 1, 2, -1)
        first, second = self._step(x, self._no_memory(1))[0][:, 0].unbind(1)  # (R, A) each
        pairs = [first.repeat_interleave(a, dim=1), second.repeat(1, a)]
        state = x.flatten(-2).expand(-1, a * a, -1)
        total = self.mix(torch.stack(pairs, dim=-1), state)
        return total[replicate].view(a, a).numpy(force=True)

    # Acting ---------------------------------------------------------------------------------------

    def _step(self, obs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values (R, any, N, A) of one step and the memories (R, any, N, H) after it."""
        if not self.config.recurrent:
            return self.q_values(obs), memory
        first = torch.zeros(*obs.shape[:2], 1, dtype=torch.bool, device=self.device)
        q, after = self.q_sequence(obs.unsqueeze(2), first, memory)
        return q.squeeze(2), after.squeeze(2)

    @torch.no_grad()
    def _greedy(
        self, obs: np.ndarray, info: dict[str, Any], memory: Tensor
    ) -> tuple[np.ndarray, Tensor]:
        """Return the best actions (R × any, N), and the memories after this step."""
        x = torch.as_tensor(obs, device=self.device).unflatten(0, (len(self.seeds), -1))
        q, memory = self._step(x, memory)
        q = q.flatten(0, 1)
        if self.action_masks:
            q = q.masked_fill(~torch.as_tensor(info["action_mask"], device=self.device), -torch.inf)
        return q.argmax(-1).numpy(force=True), memory

    def policy(self) -> Callable[[np.ndarray, dict[str, Any]], np.ndarray]:
        """Return the greedy policy: ``(obs (R × any, N, D), info) -> action (R × any, N)``.

        With a memory, it is one episode's: it begins with the first call.
        """
        memory: Tensor | None = None

        def act(obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
            nonlocal memory
            if memory is None:
                memory = self._no_memory(len(obs) // len(self.seeds))
            action, memory = self._greedy(obs, info, memory)
            return action

        return act

    @property
    def epsilon(self) -> float:
        """Probability of a random action now."""
        c = self.config
        return decay(c.epsilon_start, c.epsilon_end, c.epsilon_steps, self.steps)

    def act(self, obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return exploring actions (R × B, N) for observations (R × B, N, D)."""
        greedy, self.memory = self._greedy(obs, info, self.memory)
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
            reward=reward.sum(1),
            next_obs=next_obs,
            terminated=terminated,
            truncated=truncated,
            **extra,
        )
        if self.config.recurrent:
            ended = torch.as_tensor(terminated | truncated, device=self.device)
            ended = ended.view(len(self.seeds), self.num_envs, 1, 1)
            self.memory = self.memory.masked_fill(ended, 0.0)
        self.steps += self.num_envs

    def _values(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values of a batch of transitions, (R, batch, N, A) each.

        Q of ``obs``, with its gradient; of ``next_obs``; of ``next_obs`` by the target networks.
        """
        q = self.q_values(batch["obs"])
        with torch.no_grad():
            target = self.q_values(batch["next_obs"], self.agents.views(self.targets[0]))
            online = self.q_values(batch["next_obs"]) if self.config.double else target
        return q, online, target

    def _values_with_memory(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same along stretches, after the burn-in, (R, batch, T, N, A) each.

        The observation that follows a step is judged with the memory after that step, for all
        steps at once: that is right where the stretch ends and where an episode was cut off too.
        """
        b, (obs, first) = self.config.burn_in, (batch["obs"], batch["first"])
        empty = self._no_memory(obs.shape[1])

        def run(params: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
            memory = empty
            if b:
                with torch.no_grad():
                    memory = self.q_sequence(obs[:, :, :b], first[:, :, :b], empty, params)[1]
                    memory = memory[:, :, -1]
            return self.q_sequence(obs[:, :, b:], first[:, :, b:], memory, params)

        def follow(memory: Tensor, params: dict[str, Tensor] | None) -> Tensor:
            after = batch["next_obs"][:, :, b:].flatten(1, 2).unsqueeze(2)  # (R, batch T, 1, N, D)
            never = torch.zeros(after.shape[:3], dtype=torch.bool, device=self.device)
            q = self.q_sequence(after, never, memory.flatten(1, 2), params)[0]
            return q.squeeze(2).unflatten(1, memory.shape[1:3])

        q, memory = run(None)
        with torch.no_grad():
            params = self.agents.views(self.targets[0])
            target = follow(run(params)[1], params)
            online = follow(memory, None) if self.config.double else target
        return q, online, target

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean square of the temporal-difference error of Q_tot, (R,).

        The target is r + γⁿ (1 - terminated) Q_tot'(s', a'), with a' each agent's best action
        (Rashid et al. 2018, equations 5 and 6) and with target agents and target mixer. A square as
        in both papers: under the Huber loss, VDN's values would not be the nearest sums.

        Parameters
        ----------
        batch : dict of tensors (R, batch, ...), or (R, batch, T, ...) with memory
            As the replay gives it; ``discount`` is missing from stretches.
        """
        c = self.config
        if c.recurrent:
            q, online, target = self._values_with_memory(batch)
            batch = {name: x[:, :, c.burn_in :].flatten(1, 2) for name, x in batch.items()}
            q, online, target = (x.flatten(1, 2) for x in (q, online, target))
        else:
            q, online, target = self._values(batch)
        chosen = q.gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1)  # (R, batch, N)
        total = self.mix(chosen, batch["obs"].flatten(-2))
        with torch.no_grad():
            if self.action_masks:
                online = online.masked_fill(~batch["next_mask"], -torch.inf)
            best = target.gather(-1, online.argmax(-1, keepdim=True)).squeeze(-1)
            params = None if self.mixer is None else self.mixer.views(self.targets[1])
            value = self.mix(best, batch["next_obs"].flatten(-2), params)
            value = value.masked_fill(batch["terminated"], 0.0)
            goal = batch["reward"] + batch.get("discount", c.gamma) * value
        return (total - goal).square().mean(1)

    def update(self) -> dict[str, np.ndarray]:
        """Learn as often as the steps seen since the last call ask for.

        Returns
        -------
        dict of (R,) arrays: ``loss`` and the gradient norms ``grad_norm`` of the agents and, with
        QMIX, ``mixer_grad_norm``, of the last update; empty if there was none.
        """
        c = self.config
        due = max(0, self.steps - c.learning_starts) // c.train_every - self.updates
        if self.replay.size < c.reach or self.steps < c.learning_starts:
            return {}
        metrics: dict[str, np.ndarray] = {}
        for _ in range(due):
            metrics = self.learn_once()
        return metrics

    def learn_once(self) -> dict[str, np.ndarray]:
        """Make one update, due or not; return the figures of :meth:`update`."""
        c = self.config
        if c.recurrent:
            loss = self.loss(self.replay.sample_sequences(c.batch_size, c.sequence_length))
        else:
            loss = self.loss(self.replay.sample(c.batch_size, c.n_step, c.gamma))
        for net in self.nets:
            net.zero_grad()
        loss.sum().backward()
        norms, left = [], remaining(self.steps, self.total_steps if c.anneal else None)
        for net, optimizer in zip(self.nets, self.optimizers, strict=True):
            norms.append(net.clip_gradient(c.max_grad_norm))
            optimizer.learning_rate = left * c.learning_rate
            optimizer.step()
        self.updates += 1
        if self.updates % c.target_every == 0:
            for target, net in zip(self.targets, self.nets, strict=True):
                target.copy_(net.flat)
        figures = {"loss": loss.detach(), "grad_norm": norms[0].view(len(self.seeds), -1).mean(1)}
        if self.mixer is not None:
            figures["mixer_grad_norm"] = norms[1]
        return {name: value.numpy(force=True) for name, value in figures.items()}

    # Keeping --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that learning depends on, the replay and the agents' memories included."""
        learned = {
            name: {"parameters": net.flat.detach().clone(), "target": t.clone(), **o.state_dict()}
            for name, net, t, o in self._named()
        }
        return {
            **learned,
            "streams": {k: torch.from_numpy(v) for k, v in self.streams.state_dict().items()},
            "memory": self.memory.clone(),
            "steps": self.steps,
            "updates": self.updates,
            "replay": self.replay.state_dict(),
        }

    def _named(self) -> list[tuple[str, Replicates, Tensor, Adam]]:
        """Return name, networks, target and optimiser of what learns."""
        names = ["agents", "mixer"][: len(self.nets)]
        return list(zip(names, self.nets, self.targets, self.optimizers, strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the learner that wrote ``state`` stood."""
        for name, net, target, optimizer in self._named():
            kept = dict(state[name])
            net.flat.copy_(kept.pop("parameters"))
            target.copy_(kept.pop("target"))
            optimizer.load_state_dict(kept)
        self.streams.load_state_dict({k: v.numpy() for k, v in state["streams"].items()})
        self.memory.copy_(state["memory"])
        self.steps, self.updates = state["steps"], state["updates"]
        self.replay.load_state_dict(state["replay"])

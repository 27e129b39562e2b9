"""Learning off policy: a replay, when an update is due, networks followed by slow targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_lib.config import Count, Natural, Share, require
from marl_lib.learner import Data, Learner, LearnerConfig
from marl_lib.replay import Replay
from marl_lib.seeding import RandomStreams


@dataclass(frozen=True)
class OffPolicyConfig(LearnerConfig):
    """Settings of a learner with a replay; steps are environment steps of one replicate.

    Parameters
    ----------
    batch_size : int
        Transitions (of the whole team) in an update; stretches, with a memory.
    buffer_size : int
        Transitions kept.
    learning_starts : int
        Steps before the first update.
    train_every : int
        Steps between updates; with more environments than this, several updates follow each step
        of the batch, so the ratio of updates to experience does not depend on ``num_envs``.
    target_every : int
        Updates between steps of the target networks towards the present ones ...
    tau : float
        ... of this share of the way; 1 copies them.
    sequence_length : int
        Steps of a stretch, with a memory, ``burn_in`` included.
    burn_in : int
        Steps of it that only fill the memory, which begins empty.
    """

    batch_size: Count = 128
    buffer_size: Count = 50_000
    learning_starts: Natural = 1_000
    train_every: Count = 4
    target_every: Count = 250
    tau: Share = 1.0
    sequence_length: Count = 16
    burn_in: Natural = 4

    def check(self) -> None:
        """Refuse a burn-in that leaves nothing to learn from."""
        super().check()
        rule = f"less than sequence_length, {self.sequence_length}"
        require(self.burn_in < self.sequence_length, "burn_in", self.burn_in, rule)


class OffPolicy(Learner):
    """A learner that draws what it learns from out of a replay.

    Notes
    -----
    Stretches for agents with memory begin with an empty one and fill it over ``burn_in`` steps
    (Kapturowski et al. 2019 compare this with storing the state). Stored states would take more
    room than all else that is stored, go stale as the network learns, and bring little where
    episodes are short: wherever one begins within a stretch, the empty memory is exact.
    """

    config: Any
    with_targets = True
    stores_sum = False  # what the team is paid is kept as one number, the sum over its agents
    learning_noise = 0  # random numbers that the losses take, for each agent and step

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        c, remembers = self.config, self.config.encoder.remembers
        self.length = c.sequence_length if remembers else 1
        self.burn_in = c.burn_in if remembers else 0
        self.n_step: int = getattr(c, "n_step", 1)
        require(not remembers or self.n_step == 1, "n_step", self.n_step, "1 with a memory")
        self.reach = self.length + self.n_step - 1  # successive steps that a draw needs
        least = self.reach * self.num_envs
        require(c.buffer_size >= least, "buffer_size", c.buffer_size, f"at least {least} here")
        self.replay = self._make_replay()
        self.draws = RandomStreams(self.seeds, 1, "learn")

    # What an algorithm supplies -------------------------------------------------------------------

    def losses(self) -> dict[str, tuple[tuple[str, ...], Callable[..., tuple[Tensor, Data]]]]:
        """Return its losses in order: name -> the networks that learn, and the function.

        ``function(net, target, batch)`` returns the loss of one replicate and a dict of figures.
        """
        raise NotImplementedError

    # The replay -----------------------------------------------------------------------------------

    def _make_replay(self) -> Replay:
        s = self.spec
        action = ((), torch.int64) if s.bounds is None else ((s.n_actions,), torch.float32)
        fields: dict[str, Any] = {
            "obs": ((s.n_agents, s.obs_dim), torch.float32),
            "action": ((s.n_agents, *action[0]), action[1]),
            "next_obs": ((s.n_agents, s.obs_dim), torch.float32),
        }
        if s.action_masks:
            fields["mask"] = fields["next_mask"] = ((s.n_agents, s.n_actions), torch.bool)
        paid = 1 if self.stores_sum else s.n_agents
        size, rows = self.config.buffer_size, self.num_envs
        return Replay(size, rows, self.seeds, fields, (paid,), self.device)

    def observe(
        self,
        stored: Data,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        info: Mapping[str, Any],
    ) -> None:
        """Store one step of all environments; see :meth:`marl_lib.learner.Learner.observe`."""
        reward = self.rewarded(stored, reward, info)
        step = {
            "obs": stored["obs"].flatten(0, 1),
            "action": stored["action"].flatten(0, 1),
            "reward": reward.sum(1, keepdims=True) if self.stores_sum else reward,
            "next_obs": info["final_obs"],
            "terminated": terminated,
            "truncated": truncated,
        }
        if self.spec.action_masks:
            step["mask"], step["next_mask"] = (stored["mask"].flatten(0, 1), info["final_mask"])
        self.replay.add(**step)
        self.remember(stored, terminated | truncated)

    def sample(self) -> Data:
        """Return what an update learns from, tensors (R, batch, T, ...).

        That is what :meth:`marl_lib.replay.Replay.sample` gives, ``noise`` if the losses take any,
        and, with a memory, what :meth:`remembering` adds.
        """
        c, s = self.config, self.spec
        batch = self.replay.sample(c.batch_size, self.length, self.n_step, c.gamma)
        if self.learning_noise:
            shape = (c.batch_size, self.length, s.n_agents, self.learning_noise)
            drawn = self.draws.uniform(int(np.prod(shape))).astype(np.float32)
            batch["noise"] = torch.from_numpy(drawn).to(self.device).view(-1, *shape)
        return self.lift(self.remembering, batch) if self.memory_size else batch

    def looked_at(self, batch: Data) -> Data:
        """Return what each network with a memory sees along a stretch, (batch, T, N, D) by name."""
        return {self.acting: batch["obs"]}

    def remembering(self, net: Any, batch: Data) -> Data:
        """Return the steps after the burn-in, with the memories that it left, for one replicate.

        Memories are empty before the burn-in, and none has a gradient. For each network that
        :meth:`looked_at` names, ``<name>_memory`` (batch, N, S) is the memory before the first of
        the steps and ``<name>_target_memory`` (batch, T, N, S) that of the target after each; for
        those that do not act, ``<name>_before`` (batch, T, N, S) is the one before each.
        """
        b, first, found = self.burn_in, batch["first"], {}
        for name, x in self.looked_at(batch).items():
            none = x.new_zeros(x.shape[0], x.shape[2], getattr(net, name).memory_size)
            n = b if name == self.acting else x.shape[1]
            history = [none.unsqueeze(1)]
            if n:
                history.append(getattr(net, name)(x[:, :n], none, first[:, :n])[1])
            before = torch.cat(history, dim=1)
            found[f"{name}_memory"] = before[:, b]
            if name != self.acting:
                found[f"{name}_before"] = before[:, b:-1] * ~first[:, b:, None, None]
            found[f"{name}_target_memory"] = getattr(net.target, name)(x, none, first)[1][:, b:]
        return {name: x[:, b:] for name, x in batch.items()} | found

    @property
    def rows(self) -> int:
        """Steps of a team that an update learns from."""
        return int(self.config.batch_size) * self.length

    # Updates --------------------------------------------------------------------------------------

    def update(self) -> dict[str, np.ndarray]:
        """Learn as often as the steps seen since the last call ask for.

        Returns
        -------
        dict of (R,) arrays: each loss and the norm of its gradient before clipping, and what else
        the algorithm watches, of the last update; empty if there was none.
        """
        c = self.config
        if self.replay.size < self.reach or self.steps < c.learning_starts:
            return {}
        figures: Data = {}
        for _ in range((self.steps - c.learning_starts) // c.train_every - self.updates):
            figures = self.learn_once()
        return {name: value.numpy(force=True) for name, value in figures.items()}

    def learn_once(self) -> Data:
        """Make one update, due or not; return the figures of :meth:`update` as tensors."""
        c, batch = self.config, self.sample()
        figures: Data = {}
        self.anneal(self.steps)
        for name, (learning, loss) in self.losses().items():
            found = self.descend(
                lambda net, batch, loss=loss: loss(net, net.target, batch), learning, batch
            )
            for part in learning:
                self.optimizers[part].step()
            prefix = name.removesuffix("loss")
            figures |= {
                prefix + k if k in ("loss", "grad_norm") else k: v for k, v in found.items()
            }
        self.updates += 1
        if self.updates % c.target_every == 0:
            for net in self.nets.values():
                net.follow(c.tau)
        return figures


def next_values(
    net: Any, target: Any, batch: Data, memory: Tensor, double: bool
) -> tuple[Tensor, Tensor]:
    """Return the action values of where each step led, (batch, T, N, A) each, without gradient.

    What follows a step is judged with the memory after that step, for all steps at once: that is
    right where the stretch ends and where an episode was cut off too.

    Parameters
    ----------
    net, target : namespaces of networks, of one replicate
    batch : dict of tensors (batch, T, ...)
    memory : (batch, T, N, S)
        That of ``net.agents`` after each step.
    double : bool

    Returns
    -------
    next_q
        By the target.
    chooser
        To choose by, -∞ where an action is illegal: those of ``net`` if ``double`` (van Hasselt et
        al. 2016), else of the target.
    """
    with torch.no_grad():
        next_q = target.agents(batch["next_obs"], batch.get("agents_target_memory"))[0]
        chooser = net.agents(batch["next_obs"], memory)[0] if double else next_q
        if "next_mask" in batch:
            chooser = chooser.masked_fill(~batch["next_mask"], -torch.inf)
    return next_q, chooser

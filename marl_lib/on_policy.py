"""Learning on policy: a rollout, the value of what follows its steps, passes over its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from marl_lib.advantages import RewardScale
from marl_lib.config import Count, Positive, at_least, require
from marl_lib.learner import Data, Learner, LearnerConfig
from marl_lib.replay import minibatches
from marl_lib.seeding import RandomStreams


@dataclass(frozen=True)
class OnPolicyConfig(LearnerConfig):
    """Settings of a learner from rollouts; steps are environment steps of one replicate.

    Parameters
    ----------
    anneal : bool
        Let the learning rate (and PPO's clip ratio) go down linearly to zero over the whole
        training.
    rollout : int
        Steps T of each environment between updates.
    epochs : int
        Passes over a rollout.
    batch_size : int
        Steps in a minibatch; the rollout is cut into as many equal ones as fit. The agents of a
        step stay together.
    sequence_length : int or None
        With a memory, the rollout is learned from in stretches of so many steps, each from the
        memory with which it was played; None for the whole rollout.
    normalise_reward : bool
        Divide rewards by the running deviation of the discounted return, so that one learning rate
        suits worlds that pay in different coin.
    """

    anneal: bool = True
    rollout: Count = 32
    epochs: Count = 4
    batch_size: Annotated[int, at_least(2)] = 512  # one advantage has no deviation
    max_grad_norm: Positive | None = 0.5
    sequence_length: Count | None = None
    normalise_reward: bool = True

    def check(self) -> None:
        """Refuse stretches that a rollout is not made of."""
        super().check()
        if self.sequence_length is not None:
            rule = f"a divisor of rollout, {self.rollout}"
            fits = self.rollout % self.sequence_length == 0
            require(fits, "sequence_length", self.sequence_length, rule)


class OnPolicy(Learner):
    """A learner that learns from each rollout of its present policy, and forgets it.

    Attributes
    ----------
    data : dict of tensors (R, T, B, ...)
        The rollout: what acting said is to be stored, and what came of it.
    t : int
        Steps in it.
    """

    config: Any
    adam_eps = 1e-5
    counts = ("steps", "updates", "t")

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        c = self.config
        more = c.rollout * self.num_envs > 1  # one return has no variance
        require(more, "rollout", c.rollout, "at least 2 with one environment")
        # Steps of a stretch; without a memory each step stands alone.
        self.length = (c.sequence_length or c.rollout) if c.encoder.remembers else 1
        rows = self.num_envs * self.n_values
        self.scale = RewardScale(self.replicates, rows, c.gamma, self.device)
        self.shuffle = RandomStreams(self.seeds, 1, "shuffle")
        self.data: Data = {}
        self.t = 0
        self.start = self.memory.clone()  # memories with which the rollout began

    # What an algorithm supplies -------------------------------------------------------------------

    def prepare(self) -> Data:
        """Return the rollout ready to learn from, see :meth:`stretches`."""
        raise NotImplementedError

    def minimised(self, left: float) -> tuple[tuple[str, ...], Callable[..., tuple[Tensor, Data]]]:
        """Return the networks that learn and their loss, with a share ``left`` of the training."""
        raise NotImplementedError

    def goes_on(self, epoch: list[Data]) -> Tensor | None:
        """Return which replicates (R,) go on after a pass with these figures; None for all."""
        return None

    @property
    def n_values(self) -> int:
        """V, what is learned of one step: a value for each agent, or one for the team."""
        return self.spec.n_agents

    # The rollout ----------------------------------------------------------------------------------

    def observe(
        self,
        stored: Data,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        info: Mapping[str, Any],
    ) -> None:
        """Add one step to the rollout; see :meth:`marl_lib.learner.Learner.observe`."""
        came = {
            "reward": self.rewarded(stored, reward, info),
            "next_obs": info["final_obs"],
            "terminated": terminated,
            "truncated": truncated,
        }
        if self.spec.action_masks:
            came["next_mask"] = info["final_mask"]
        step = {k: v for k, v in stored.items() if k != "noise"}
        step |= {name: self.tensor(value) for name, value in came.items()}
        for name, value in step.items():
            if name not in self.data:
                shape = (self.replicates, self.config.rollout, *value.shape[1:])
                self.data[name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
            self.data[name][:, self.t] = value
        self.remember(stored, terminated | truncated)
        self.t += 1

    def update(self) -> dict[str, np.ndarray]:
        """Learn from the rollout if it is full.

        Returns
        -------
        dict of (R,) arrays, means over the minibatches, empty if it is not full: the loss, the norm
        of its gradient before clipping, and what the algorithm watches.
        """
        if self.t < self.config.rollout:
            return {}
        figures = self.learn(self.prepare())
        self.t, self.start = 0, self.memory.clone()
        return {name: value.numpy(force=True) for name, value in figures.items()}

    def learn(self, batch: Data) -> Data:
        """Make all passes over a prepared rollout; return means of the figures."""
        c = self.config
        steps = c.rollout * self.num_envs
        left = self.anneal(self.steps - steps)  # as it was when this rollout was begun
        learning, loss = self.minimised(left)
        active: Tensor | None = None  # all
        parts, seen = max(1, min(steps // c.batch_size, steps // self.length)), []
        for _ in range(c.epochs):
            epoch = []
            for part in minibatches(batch, parts, self.shuffle):
                epoch.append(self.descend(loss, learning, part))
                for name in learning:
                    self.optimizers[name].step(active)
            seen += epoch
            going = self.goes_on(epoch)
            if going is not None:
                active = going if active is None else active & going
                if not active.any():
                    break
        self.updates += 1
        return {name: torch.stack([m[name] for m in seen]).mean(0) for name in seen[0]}

    # What prepares a rollout ----------------------------------------------------------------------

    @property
    def ended(self) -> Tensor:
        """Where an episode ended, (R, T, B)."""
        return self.data["terminated"] | self.data["truncated"]

    @property
    def first(self) -> Tensor:
        """Where an episode began within the rollout, (R, T, B)."""
        first = self.ended.roll(1, dims=1)
        first[:, 0] = False  # the memories that the rollout began with are empty there
        return first

    def run_along(
        self, function: Callable[..., Any], obs: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run a function ``(net, obs, memory, first) -> (out, memory)`` along the rollout.

        Parameters
        ----------
        obs : (R, T, B, N, D)
        start : (R, B, N, S)
            Memories with which the rollout began; without memory each step stands alone.

        Returns
        -------
        out, memory : (R, T, B, N, ...) each, the memory after each step
        """
        steps = obs.shape[1]
        length = steps if start.shape[-1] else 1
        rows = stretches(obs, length), start.repeat(1, steps // length, 1, 1)
        out, after = self.lift(function, *rows, stretches(self.first, length))
        return whole(out, self.num_envs), whole(after, self.num_envs)

    def following(self, value: Tensor, judge: Callable[[Data], Tensor], led_to: Data) -> Tensor:
        """Return the value of what each step led to, from that of what it started from.

        Where an episode ended, the next observation in the rollout belongs to another one; only for
        steps at which one ran out of time, and for the last, is it asked for.

        Parameters
        ----------
        value : (R, T, B, V)
        judge : callable
            Returns the values (R, K, V) of K places in ``led_to``, given as (R, K, ...).
        led_to : dict of tensors (R, T, B, ...)
        """
        out = value.roll(-1, dims=1)
        out[:, -1] = judge({name: x[:, -1] for name, x in led_to.items()})
        cut = self.data["truncated"].flatten(1)  # (R, T B)
        most = int(cut.sum(1).max())
        if most:  # a replicate with fewer is asked for others as well
            where = cut.int().argsort(dim=1, descending=True, stable=True)[:, :most]
            at = torch.arange(self.replicates, device=self.device).unsqueeze(1), where
            found = judge({name: x.flatten(1, 2)[at] for name, x in led_to.items()})
            places = out.flatten(1, 2)  # a view
            places[at] = found.where(cut[at].unsqueeze(-1), places[at])
        return out

    def by_row(self, reward: Tensor, **values: Tensor) -> dict[str, Any]:
        """Return what returns are computed from, with the values folded into the rows.

        Parameters
        ----------
        reward : (R, T, B, V)
            Scaled on the way, if the configuration says so.
        values : (R, T, B, V) each

        Returns
        -------
        dict of (R, T, B × V): ``reward``, the values, ``terminated`` and ``ended``
        """
        ends = {"terminated": self.data["terminated"], "ended": self.ended}
        rows = {k: x.unsqueeze(-1).expand(reward.shape).flatten(2) for k, x in ends.items()}
        rows |= {name: x.flatten(2) for name, x in values.items()}
        reward = reward.flatten(2)
        scaled = self.config.normalise_reward
        return rows | {"reward": self.scale(reward, rows["ended"]) if scaled else reward}

    def cut_up(self, rollout: Data, memories: Mapping[str, tuple[Tensor, Tensor]]) -> Data:
        """Return a rollout in the stretches that are learned from, (R, n, length, ...).

        Parameters
        ----------
        rollout : dict of tensors (R, T, B, ...)
        memories : mapping of name to (start, after)
            With which the rollout began (R, B, N, S), and after each step (R, T, B, N, S), whether
            an episode ended there or not. Under each name stands then the memory before each
            stretch, (R, n, N, S).
        """
        rollout = {**rollout, "first": self.first}
        batch = {name: stretches(x, self.length) for name, x in rollout.items()}
        for name, (start, after) in memories.items():
            kept = after[:, :-1] * ~self.ended[:, :-1, :, None, None]
            before = torch.cat([start.unsqueeze(1), kept], dim=1)  # each step
            batch[name] = before[:, :: self.length].flatten(1, 2)
        return batch


def stretches(x: Tensor, length: int) -> Tensor:
    """Return (R, T, B, ...) in stretches of time, (R, T / length × B, length, ...)."""
    return x.unflatten(1, (-1, length)).transpose(2, 3).flatten(1, 2)


def whole(x: Tensor, num_envs: int) -> Tensor:
    """Undo :func:`stretches`."""
    return x.unflatten(1, (-1, num_envs)).transpose(2, 3).flatten(1, 2)

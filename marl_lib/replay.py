"""What is learned from: a ring of past steps, or a rollout in parts, of many replicates at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from marl_lib.seeding import RandomStreams

Fields = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Replay:
    """A ring buffer of shape (time, environments), from which each replicate draws its own rows.

    A transition is stored as it happened: ``obs``, ``action``, ``reward``, ``next_obs`` (before
    any reset), ``terminated`` and ``truncated``. Terminal transitions are kept and drawn like any
    other. Time is kept in order, so that n-step returns and sequences are cut from the ring when
    drawn.

    Parameters
    ----------
    capacity : int
        Transitions kept for each replicate (Lin 1992).
    num_envs : int
        B, environments of one replicate.
    seeds : sequence of int
        One for each of R replicates.
    fields : mapping of name to (shape, dtype)
        What is stored besides ``reward``, ``terminated`` and ``truncated``, per environment.
    reward_shape : tuple of int
        ``(N,)`` for a reward per agent.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        seeds: Sequence[int],
        fields: Fields,
        reward_shape: tuple[int, ...] = (),
        device: str | torch.device = "cpu",
    ):
        if capacity < num_envs:
            raise ValueError(
                f"a replay of {capacity} transitions cannot hold a step of {num_envs} environments"
            )
        self.capacity = capacity // num_envs  # steps of time
        self.num_envs, self.replicates = num_envs, len(seeds)
        self.size = self.head = 0  # steps held; where the next one goes
        self.streams = RandomStreams(seeds, 1, "replay")
        rows = self.replicates * num_envs
        always: Fields = {
            "reward": (reward_shape, torch.float32),
            "terminated": ((), torch.bool),
            "truncated": ((), torch.bool),
        }
        try:
            self.data = {
                name: torch.zeros((self.capacity, rows, *shape), dtype=dtype, device=device)
                for name, (shape, dtype) in {**fields, **always}.items()
            }
        except RuntimeError as error:
            raise MemoryError(f"a replay of {capacity} transitions does not fit") from error
        self._first_row = torch.arange(self.replicates, device=device)[:, None] * num_envs  # (R, 1)

    def __len__(self) -> int:
        return self.size * self.num_envs

    def add(self, **values: Any) -> None:
        """Store one step of all R × B environments; every field, as an array (R × B, ...)."""
        if values.keys() != self.data.keys():
            raise ValueError(f"expected the fields {sorted(self.data)}, got {sorted(values)}")
        for name, value in values.items():
            place, value = self.data[name][self.head], torch.as_tensor(value)
            if value.shape != place.shape:  # which would be spread over the rows in silence
                shapes = f"{tuple(value.shape)}, expected {tuple(place.shape)}"
                raise ValueError(f"{name} has shape {shapes}")
            place.copy_(value)
        self.head = (self.head + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(
        self, batch_size: int, length: int = 1, n_step: int = 1, gamma: float = 1.0
    ) -> dict[str, Tensor]:
        """Draw stretches of ``length`` successive steps, each looking up to ``n_step`` steps ahead.

        Returns
        -------
        dict of tensors (R, batch, length, ...)
            The stored fields; ``reward`` is the discounted sum of up to n rewards, ``next_obs``,
            ``terminated`` (and any other field whose name begins with ``next_``) belong to the last
            of these steps, and ``discount`` is γ to the number of steps, to be multiplied with the
            value of ``next_obs``. The sum stops where an episode ends; only termination, not
            truncation, makes that value zero. ``first`` is True where a new episode begins within
            the stretch, so that a memory is to be reset before that step.
        """
        time, row = self._draw(batch_size, length, length + n_step - 1)
        batch = {k: self._take(k, time, row) for k in self.data if not _at_the_end(k)}
        batch["reward"] = self._take("reward", time, row)
        batch["discount"] = torch.full(time.shape, gamma, device=time.device)
        last = time
        alive = torch.ones_like(time, dtype=torch.bool)
        for k in range(1, n_step):
            ended = self._take("terminated", last, row) | self._take("truncated", last, row)
            alive = alive & ~ended
            later = (time + k) % self.capacity
            reward = self._take("reward", later, row)
            weight = (alive * gamma**k).view(*alive.shape, *[1] * (reward.ndim - 3))
            batch["reward"] = batch["reward"] + weight * reward
            batch["discount"] = torch.where(alive, batch["discount"] * gamma, batch["discount"])
            last = torch.where(alive, later, last)
        batch |= {
            k: self._take(k, last, row) for k in self.data if _at_the_end(k) and k != "reward"
        }
        batch["first"] = torch.zeros_like(alive)
        if length > 1:
            ended = self._take("terminated", time, row) | self._take("truncated", time, row)
            batch["first"][..., 1:] = ended[..., :-1]
        return batch

    def _draw(self, batch_size: int, length: int, reach: int) -> tuple[Tensor, Tensor]:
        """Return times (as places in the ring) and rows, each (R, batch, length), uniformly."""
        if self.size < reach:
            raise ValueError(f"the replay holds {self.size} steps, fewer than {reach}")
        uniform = torch.from_numpy(self.streams.uniform(2 * batch_size)).to(self._first_row.device)
        age = (uniform[:, :batch_size] * (self.size - reach + 1)).long()
        start = (self.head - self.size + age).unsqueeze(-1)  # (R, batch, 1)
        time = (start + torch.arange(length, device=start.device)) % self.capacity
        row = self._first_row + (uniform[:, batch_size:] * self.num_envs).long()
        return time, row.unsqueeze(-1).expand_as(time)

    def _take(self, name: str, time: Tensor, row: Tensor) -> Tensor:
        data = self.data[name]
        return data.flatten(0, 1)[time * data.shape[1] + row]

    def state_dict(self) -> dict[str, Any]:
        """Return the contents and the state of the draws."""
        filled = {name: value[: self.size].clone() for name, value in self.data.items()}
        place = {"capacity": self.capacity, "size": self.size, "head": self.head}
        return {**place, "data": filled, "streams": self.streams.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the replay that wrote ``state`` stood."""
        if state["capacity"] != self.capacity:  # in a longer ring, time would be out of order
            raise ValueError(f"capacity is {self.capacity} steps, not {state['capacity']}")
        self.size, self.head = state["size"], state["head"]
        for name, value in state["data"].items():
            self.data[name][: self.size] = value
        self.streams.load_state_dict(state["streams"])


def minibatches(
    batch: Mapping[str, Tensor], parts: int, streams: RandomStreams
) -> Iterator[dict[str, Tensor]]:
    """Yield a rollout in parts of equal size, shuffled for each replicate on its own.

    Parameters
    ----------
    batch : mapping of name to tensor (R, n, ...)
    parts : int
        Up to ``parts - 1`` rows, others in each pass, are left over if n is no multiple of it.
    streams : RandomStreams
        One for each replicate.
    """
    some = next(iter(batch.values()))
    draw = torch.from_numpy(streams.bits(some.shape[1]).view(np.int64)).to(some.device)
    order = draw.argsort(1)[:, : some.shape[1] - some.shape[1] % parts]  # (R, n)
    starts = torch.arange(len(order), device=order.device).unsqueeze(1) * some.shape[1]
    rows, shuffled = (order + starts).flatten(), {}
    for name, x in batch.items():
        picked = x.flatten(0, 1).index_select(0, rows).unflatten(0, order.shape)
        shuffled[name] = picked.chunk(parts, dim=1)
    for i in range(parts):
        yield {name: x[i] for name, x in shuffled.items()}


def _at_the_end(name: str) -> bool:
    """Whether an n-step draw takes the field from its last step."""
    return name.startswith("next_") or name in ("reward", "terminated", "truncated")

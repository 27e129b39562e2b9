"""Running statistics that bring observations and rewards to a common scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from marl_lib.spec import Tokens


class RunningNorm:
    """Mean and standard deviation of all that was seen, for each of R replicates.

    Parameters
    ----------
    replicates : int
    size : int
        Length D of what is normalised.
    tokens : Tokens or None
        If D is made of tokens with flags that say whether they are there, the statistics are those
        of a token's numbers, over all tokens that are there, wherever they stand: the order of a
        set changes nothing, and padding stays zero and does not count.
    clip : float
        What is normalised is clipped to ± this.

    Notes
    -----
    Batches are merged as in T. Chan, G. Golub, R. LeVeque, "Algorithms for computing the sample
    variance", 1983, equation 2.1. Before the first batch nothing is changed.
    """

    def __init__(
        self,
        replicates: int,
        size: int,
        tokens: Tokens | None = None,
        clip: float = 10.0,
        device: torch.device | str = "cpu",
    ):
        tokens = tokens if tokens is not None and tokens.flagged else None
        shape = (replicates, size if tokens is None else tokens.size)
        self.count = torch.zeros(replicates, 1, dtype=torch.float64, device=device)
        self.mean = torch.zeros(shape, device=device)
        self.square = torch.zeros(shape, device=device)  # sum of squared deviations
        self.scale = torch.ones(shape, device=device)  # 1 / standard deviation
        self.tokens, self.clip = tokens, clip

    def update(self, x: Tensor) -> None:
        """Take in a batch (R, n, D)."""
        if self.tokens is None:
            there = torch.ones_like(x[..., :1])  # (R, n, 1)
        else:
            x = self._blocks(x).flatten(1, 2)  # (R, n × tokens, 1 + size)
            there, x = x[..., :1], x[..., 1:]
        n = there.sum(1).double()  # (R, 1)
        mean = (x * there).sum(1) / n.clamp(min=1).float()
        square = ((x - mean.unsqueeze(1)) * there).square().sum(1)
        before = self.count.clone()
        self.count += n
        total = self.count.clamp(min=1)
        share, delta = (n / total).float(), mean - self.mean
        self.mean += delta * share
        self.square += square + delta.square() * (before.float() * share)
        self.scale = (self.square / total.float() + 1e-8).rsqrt()

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (R, ..., D) with mean 0 and standard deviation 1, clipped."""
        if self.tokens is None:
            mean, scale = self._like(x)
            return ((x - mean) * scale).clamp_(-self.clip, self.clip)
        x = self._blocks(x)
        there, x = x[..., :1], x[..., 1:]
        mean, scale = self._like(x)
        x = ((x - mean) * scale).clamp_(-self.clip, self.clip)
        return torch.cat([there, x * there], dim=-1).flatten(-2)

    def undo(self, x: Tensor) -> Tensor:
        """Return what is normalised to x (R, ..., D), where nothing was clipped."""
        mean, scale = self._like(x)
        return x / scale + mean

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and scale with as many axes as x (R, ..., D)."""
        shape = (len(self.mean), *[1] * (x.dim() - 2), -1)
        return self.mean.view(shape), self.scale.view(shape)

    def _blocks(self, x: Tensor) -> Tensor:
        """Return (R, ..., D) as (R, ..., tokens, numbers), the flag first."""
        assert self.tokens is not None
        return x.unflatten(-1, (self.tokens.count, -1))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics."""
        return {k: getattr(self, k).clone() for k in ("count", "mean", "square", "scale")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the statistics."""
        for name, value in state.items():
            getattr(self, name).copy_(value)


class NumberNorm(RunningNorm):
    """The same for single numbers (R, ...), not clipped."""

    def __init__(self, replicates: int, device: torch.device | str = "cpu"):
        super().__init__(replicates, 1, clip=math.inf, device=device)

    def update(self, x: Tensor) -> None:
        """Take in a batch (R, ...)."""
        super().update(x.flatten(1).unsqueeze(-1))

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (R, ...) with mean 0 and standard deviation 1."""
        return super().__call__(x.unsqueeze(-1)).squeeze(-1)

    def undo(self, x: Tensor) -> Tensor:
        """Return what is normalised to x (R, ...)."""
        return super().undo(x.unsqueeze(-1)).squeeze(-1)

"""Running statistics that bring observations and rewards to a common scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RunningNorm:
    """Mean and standard deviation of all that was seen, for each of R replicates.

    Parameters
    ----------
    replicates : int
    size : int
        Length D of what is normalised.
    skip : sequence of int
        Entries that are left as they are, such as flags that a mask is read from.
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
        skip: Sequence[int] = (),
        clip: float = 10.0,
        device: torch.device | str = "cpu",
    ):
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(replicates, size, device=device)
        self.square = torch.zeros(replicates, size, device=device)  # sum of squared deviations
        self.scale = torch.ones(replicates, size, device=device)  # 1 / standard deviation
        self.skip, self.clip = list(skip), clip

    def update(self, x: Tensor) -> None:
        """Take in a batch (R, n, D)."""
        n, before = x.shape[1], self.count.clone()
        mean = x.mean(1)  # (R, D)
        square = (x - mean.unsqueeze(1)).square().sum(1)
        self.count += n
        share, delta = (n / self.count).float(), mean - self.mean
        self.mean += delta * share
        self.square += square + delta.square() * (before.float() * share)
        variance = self.square / self.count.float()
        self.scale = (variance + 1e-8).rsqrt()
        self.mean[:, self.skip], self.scale[:, self.skip] = 0.0, 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (R, n, D) with mean 0 and standard deviation 1, clipped."""
        x = (x - self.mean.unsqueeze(1)) * self.scale.unsqueeze(1)
        return x.clamp_(-self.clip, self.clip)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics."""
        return {k: getattr(self, k).clone() for k in ("count", "mean", "square", "scale")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the statistics."""
        for name, value in state.items():
            getattr(self, name).copy_(value)

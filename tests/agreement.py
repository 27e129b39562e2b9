"""What the tests of several chapters hold against the library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from marl_lib.nn.normalization import RunningNorm


def flat(network: nn.Module) -> Tensor:
    """Return all weights of a network in one row."""
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def norm_equals_the_library_s(ours: Any) -> Tensor:
    """Hold a chapter's norm of three numbers against the library's; return what they saw last."""
    theirs = RunningNorm(1, 3)
    g = torch.Generator().manual_seed(0)
    for n in (5, 64, 2):
        x = 3 * torch.randn(n, 3, generator=g) + torch.tensor([1.0, -5.0, 100.0])
        ours.update(x)
        theirs.update(x[None])
        torch.testing.assert_close(ours(x), theirs(x[None])[0], atol=1e-4, rtol=1e-4)
    return x

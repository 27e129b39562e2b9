"""Plain layers, as several algorithms start them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def orthogonal(size_in: int, size_out: int, gain: float) -> nn.Linear:
    """Return a layer with orthogonal weights (Saxe et al. 2014) of the given gain and no bias."""
    layer = nn.Linear(size_in, size_out)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(size_in: int, hidden: Sequence[int], size_out: int) -> nn.Sequential:
    """Return linear layers with ReLU between, (..., size_in) -> (..., size_out)."""
    widths = [size_in, *hidden, size_out]
    layers: list[nn.Module] = []
    for width_in, width_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])

"""Activations of our own, against torch's."""

from __future__ import annotations

import torch
from torch.func import grad, vmap

from marl_lib.nn.layers import FastTanh


def test_the_fast_tanh_is_tanh() -> None:
    """Its values, over all that is not yet one in single precision, and two gradients."""
    x = torch.linspace(-12, 12, 2_001)
    torch.testing.assert_close(FastTanh()(x), x.tanh(), atol=3e-7, rtol=0)
    double = torch.linspace(-4, 4, 21, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FastTanh(), double)
    assert torch.autograd.gradgradcheck(FastTanh(), double)


def test_the_fast_tanh_can_be_lifted() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vmap(FastTanh())(x), x.tanh())
    slope = vmap(vmap(grad(lambda one: FastTanh()(one))))(x)
    torch.testing.assert_close(slope, 1 - x.tanh().square())

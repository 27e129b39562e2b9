"""Mixers against loops written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from marl_lib.nn.mixing import MonotonicMixer, SumMixer

AGENTS, STATE, WIDTH, HYPER = 3, 5, 4, 6


def mixer(seed: int = 0) -> MonotonicMixer:
    torch.manual_seed(seed)
    return MonotonicMixer(AGENTS, STATE, WIDTH, HYPER)


def test_the_sum_is_the_sum() -> None:
    q, state = torch.tensor([[1.0, -2.5, 4.0], [0.5, 0.25, 0.0]]), torch.randn(2, STATE)
    assert SumMixer()(q, state).tolist() == [2.5, 0.75]
    assert list(SumMixer().parameters()) == []


def slow(net: MonotonicMixer, q: list[float], state: list[float]) -> float:
    """Return Q_tot by loops over numbers, each of the four networks of the state by itself."""

    def line(weight: Tensor, bias: Tensor, x: list[float]) -> list[float]:
        rows = zip(weight.tolist(), bias.tolist(), strict=True)
        return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows]

    def relu(x: list[float]) -> list[float]:
        return [max(0.0, v) for v in x]

    reads = zip(
        net.read.weight.split([HYPER, HYPER, WIDTH, WIDTH]),
        net.read.bias.split([HYPER, HYPER, WIDTH, WIDTH]),
        strict=True,
    )
    for_first, for_second, for_bias, first_bias = (line(w, b, state) for w, b in reads)
    first = line(net.first_weight.weight, net.first_weight.bias, relu(for_first))
    second = line(net.second_weight.weight, net.second_weight.bias, relu(for_second))
    total = line(net.second_bias.weight, net.second_bias.bias, relu(for_bias))[0]
    for unit in range(WIDTH):
        x = first_bias[unit] + sum(abs(first[i * WIDTH + unit]) * q[i] for i in range(AGENTS))
        total += abs(second[unit]) * (x if x > 0 else math.expm1(x))
    return total


@given(st.integers(0, 2**16))
def test_mixing_equals_a_loop(seed: int) -> None:
    net = mixer(seed)
    q, state = 3 * torch.randn(2, AGENTS), torch.randn(2, STATE)
    found = net(q, state)
    for row in range(2):
        assert found[row].item() == pytest.approx(
            slow(net, q[row].tolist(), state[row].tolist()), rel=1e-4, abs=1e-4
        )


@given(st.integers(0, 2**16), st.floats(0.1, 30))
def test_the_team_is_never_worse_off_for_a_better_agent(seed: int, scale: float) -> None:
    net = mixer(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(scale * torch.randn_like(p))
    q = (scale * torch.randn(50, AGENTS)).requires_grad_()
    state = torch.randn(50, STATE)
    (slope,) = torch.autograd.grad(net(q, state).sum(), q)
    assert (slope >= 0).all() and (slope > 0).any()
    for i in range(AGENTS):
        better = q.detach().clone()
        better[:, i] += 1.0
        gain = net(better, state) - net(q, state)
        assert (gain >= -1e-5 * net(q, state).abs().clamp(min=1)).all()


def test_the_state_chooses_the_weights() -> None:
    net = mixer()
    q = torch.zeros(2, AGENTS, requires_grad=True)
    (slope,) = torch.autograd.grad(net(q, torch.randn(2, STATE)).sum(), q)
    assert not torch.allclose(slope[0], slope[1])


def test_gradients_reach_every_part() -> None:
    net = mixer()
    q = torch.randn(64, AGENTS, requires_grad=True)
    net(q, torch.randn(64, STATE)).square().sum().backward()
    assert q.grad is not None and (q.grad != 0).any(1).all()
    for name, p in net.named_parameters():
        assert p.grad is not None
        rows = p.grad.flatten(1) if p.ndim > 1 else p.grad.unsqueeze(1)
        assert (rows != 0).any(1).all(), name  # of every unit, not only of some


@pytest.mark.parametrize("lead", [(), (7,), (2, 3, 7)])
def test_any_leading_axes(lead: tuple[int, ...]) -> None:
    net = mixer()
    q, state = torch.randn(*lead, AGENTS), torch.randn(*lead, STATE)
    for mix in (net, SumMixer()):
        found = mix(q, state)
        assert found.shape == lead
        rows = mix(q.view(-1, AGENTS), state.view(-1, STATE)).view(lead)
        torch.testing.assert_close(found, rows)


@pytest.mark.filterwarnings("error")  # vmap warns where it falls back to a loop
def test_many_mixers_at_once_equal_each_alone() -> None:
    nets = [mixer(seed) for seed in range(3)]
    q, state = torch.randn(3, 7, AGENTS), torch.randn(3, 7, STATE)
    params, _ = stack_module_state(nets)
    found = vmap(lambda p, *x: functional_call(nets[0], p, x))(params, q, state)
    alone = torch.stack([net(a, b) for net, a, b in zip(nets, q, state, strict=True)])
    torch.testing.assert_close(found, alone)

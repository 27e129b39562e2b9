"""Recurrent cells against torch's, and sequences against runs cut by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from marl_lib.nn.recurrent import CELLS, run_cell

IN, SIZE, AGENTS = 3, 5, 2
kinds = pytest.mark.parametrize("kind", CELLS)


def cell(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return CELLS[kind](IN, SIZE)


def torchs(own: Any, kind: str) -> Any:
    """Return torch's cell with the same weights."""
    other = {"gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}[kind](IN, SIZE)
    other.load_state_dict(
        {
            "weight_ih": own.input.weight,
            "bias_ih": own.input.bias,
            "weight_hh": own.hidden.weight,
            "bias_hh": own.hidden.bias,
        }
    )
    return other


def step(other: Any, kind: str, x: Tensor, state: Tensor) -> Tensor:
    """Return the next state by torch's cell; LSTM's is output and cell side by side."""
    if kind == "gru":
        found: Tensor = other(x, state)
        return found
    return torch.cat(other(x, state.chunk(2, -1)), -1)


def run(net: Any, x: Tensor, first: Tensor, state: Tensor) -> Tensor:
    return run_cell(net, net.input(x), first, state)


@kinds
@given(seed=st.integers(0, 2**16), scale=st.floats(0.1, 10))
def test_the_cell_equals_torchs(kind: str, seed: int, scale: float) -> None:
    own = cell(kind, seed)
    x, state = scale * torch.randn(4, IN), torch.randn(4, own.state_size)
    found = own(x, state)
    torch.testing.assert_close(found, step(torchs(own, kind), kind, x, state))
    out = found if kind == "gru" else found.chunk(2, -1)[0]
    torch.testing.assert_close(own.output(found), out)
    assert out.shape == (4, SIZE)


@kinds
def test_gradients_equal_torchs(kind: str) -> None:
    own = cell(kind)
    other = torchs(own, kind)
    x, state = torch.randn(4, IN), torch.randn(4, own.state_size)
    own(x, state).square().sum().backward()
    step(other, kind, x, state).square().sum().backward()
    by_name = dict(other.named_parameters())
    assert len(by_name) == 4
    for name, p in own.named_parameters():
        part, layer = name.split(".")[1], "ih" if name.startswith("input") else "hh"
        torch.testing.assert_close(p.grad, by_name[f"{part}_{layer}"].grad)


@kinds
@given(seed=st.integers(0, 2**16), length=st.integers(1, 9), share=st.floats(0, 1))
def test_a_sequence_equals_its_episodes(kind: str, seed: int, length: int, share: float) -> None:
    """Step by step, by the cell itself, from nothing where one begins."""
    net = cell(kind, seed)
    x, state = torch.randn(4, length, AGENTS, IN), torch.randn(4, AGENTS, net.state_size)
    first = torch.rand(4, length) < share
    found = run(net, x, first, state)
    assert found.shape == (4, length, AGENTS, net.state_size)
    for row in range(4):
        now = state[row]
        for t in range(length):
            now = net(x[row, t], torch.zeros_like(now) if first[row, t] else now)
            torch.testing.assert_close(found[row, t], now)


@kinds
def test_nothing_passes_from_one_episode_to_the_next(kind: str) -> None:
    net = cell(kind)
    x = torch.randn(6, 1, IN, requires_grad=True)
    state = torch.randn(1, net.state_size, requires_grad=True)
    first = torch.tensor([False, False, False, True, False, False])
    run(net, x, first, state)[3:].sum().backward()
    assert x.grad is not None and state.grad is not None
    assert not x.grad[:3].any() and not state.grad.any()
    assert x.grad[3:].flatten(1).any(1).all()


@kinds
def test_the_past_is_remembered_and_the_future_not_known(kind: str) -> None:
    net = cell(kind)
    x, never = torch.randn(6, 1, IN), torch.zeros(6, dtype=torch.bool)
    other = x.clone()
    other[2] += 1.0
    empty = torch.zeros(1, net.state_size)
    before, after = (run(net, seq, never, empty)[:, 0] for seq in (x, other))
    torch.testing.assert_close(before[:2], after[:2])
    assert ((before[2:] - after[2:]).abs().amax(1) > 1e-5).all()


@kinds
def test_a_sample_or_an_agent_never_changes_another(kind: str) -> None:
    net = cell(kind)
    x, state = torch.randn(4, 6, AGENTS, IN), torch.randn(4, AGENTS, net.state_size)
    first = torch.rand(4, 6) < 0.3
    before = run(net, x, first, state)
    x[2], state[2], first[2], x[0, :, 1] = 5.0, 5.0, ~first[2], -5.0
    after = run(net, x, first, state)
    for rows in ((slice(1, 2), slice(None)), (3, slice(None)), (0, slice(0, 1))):
        row, agent = rows
        torch.testing.assert_close(before[row, ..., agent, :], after[row, ..., agent, :])
    assert not torch.allclose(before[2], after[2], atol=1e-3)
    assert not torch.allclose(before[0, :, 1], after[0, :, 1], atol=1e-3)


@kinds
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
@pytest.mark.filterwarnings("error")  # vmap warns where it falls back to a loop
def test_many_cells_at_once_equal_each_alone(kind: str, lead: tuple[int, ...]) -> None:
    nets = [cell(kind, seed) for seed in range(3)]
    x = torch.randn(3, *lead, 6, AGENTS, IN)
    state = torch.randn(3, *lead, AGENTS, nets[0].state_size)
    first = torch.rand(3, *lead, 6) < 0.3

    class Run(torch.nn.Module):
        def __init__(self, net: Any):
            super().__init__()
            self.net = net

        def forward(self, *inputs: Tensor) -> Tensor:
            return run(self.net, *inputs)

    params, _ = stack_module_state([Run(net) for net in nets])
    found = vmap(lambda p, *z: functional_call(Run(nets[0]), p, z))(params, x, first, state)
    each = [run(n, *z) for n, *z in zip(nets, x, first, state, strict=True)]
    torch.testing.assert_close(found, torch.stack(each))

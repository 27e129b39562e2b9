"""The gated recurrent unit against torch's, and sequences against runs cut by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from marl_lib.nn.recurrent import GRUCell, run_cell

IN, SIZE = 3, 5


def cell(seed: int = 0) -> GRUCell:
    torch.manual_seed(seed)
    return GRUCell(IN, SIZE)


def torchs(own: GRUCell) -> torch.nn.GRUCell:
    """Return torch's cell with the same weights."""
    other = torch.nn.GRUCell(IN, SIZE)
    other.load_state_dict(
        {
            "weight_ih": own.input.weight,
            "bias_ih": own.input.bias,
            "weight_hh": own.hidden.weight,
            "bias_hh": own.hidden.bias,
        }
    )
    return other


@given(st.integers(0, 2**16), st.floats(0.1, 10))
def test_the_cell_equals_torchs(seed: int, scale: float) -> None:
    own = cell(seed)
    x, state = scale * torch.randn(4, IN), torch.randn(4, SIZE)
    torch.testing.assert_close(own(x, state), torchs(own)(x, state))


def test_gradients_equal_torchs() -> None:
    own = cell()
    other = torchs(own)
    x, state = torch.randn(4, IN), torch.randn(4, SIZE)
    for net in (own, other):
        net(x, state).square().sum().backward()
    pairs = zip(own.parameters(), other.parameters(), strict=False)
    by_name = dict(other.named_parameters())
    assert len(list(pairs)) == 4
    for name, p in own.named_parameters():
        kind, layer = name.split(".")[1], "ih" if name.startswith("input") else "hh"
        torch.testing.assert_close(p.grad, by_name[f"{kind}_{layer}"].grad)


def by_hand(net: GRUCell, x: Tensor, first: Tensor, state: Tensor) -> Tensor:
    """Return the states of one sequence (T, IN): cut where episodes begin, each run by itself."""
    states = []
    for t in range(len(x)):
        state = net(x[t], torch.zeros(SIZE) if first[t] else state)
        states.append(state)
    return torch.stack(states)


@given(st.integers(0, 2**16), st.integers(1, 9), st.floats(0, 1))
def test_a_sequence_equals_its_episodes(seed: int, length: int, share: float) -> None:
    net = cell(seed)
    x, state = torch.randn(4, length, IN), torch.randn(4, SIZE)
    first = torch.rand(4, length) < share
    found = run_cell(net, x, first, state)
    assert found.shape == (4, length, SIZE)
    for row in range(4):
        torch.testing.assert_close(found[row], by_hand(net, x[row], first[row], state[row]))


def test_nothing_passes_from_one_episode_to_the_next() -> None:
    net = cell()
    x, state = torch.randn(6, IN, requires_grad=True), torch.randn(SIZE, requires_grad=True)
    first = torch.tensor([False, False, False, True, False, False])
    run_cell(net, x, first, state)[3:].sum().backward()
    assert x.grad is not None and state.grad is not None
    assert not x.grad[:3].any() and not state.grad.any()
    assert x.grad[3:].any(1).all()


def test_the_past_is_remembered_and_the_future_not_known() -> None:
    net = cell()
    x, never, state = torch.randn(1, 6, IN), torch.zeros(1, 6, dtype=torch.bool), torch.zeros(1, 5)
    other = x.clone()
    other[0, 2] += 1.0
    before, after = (run_cell(net, seq, never, state)[0] for seq in (x, other))
    assert torch.equal(before[:2], after[:2])
    assert (before[2:] != after[2:]).any(1).all()


def test_a_sample_never_changes_another() -> None:
    net = cell()
    x, state, first = torch.randn(4, 6, IN), torch.randn(4, SIZE), torch.rand(4, 6) < 0.3
    before = run_cell(net, x, first, state)
    others = torch.tensor([0, 1, 3])
    x[2], state[2], first[2] = 5.0, 5.0, ~first[2]
    after = run_cell(net, x, first, state)
    assert torch.equal(before[others], after[others]) and (before[2] != after[2]).any()


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
@pytest.mark.filterwarnings("error")  # vmap warns where it falls back to a loop
def test_many_cells_at_once_equal_each_alone(lead: tuple[int, ...]) -> None:
    nets = [cell(seed) for seed in range(3)]
    x, state = torch.randn(3, *lead, 6, IN), torch.randn(3, *lead, SIZE)
    first = torch.rand(3, *lead, 6) < 0.3

    class Run(torch.nn.Module):
        def __init__(self, net: GRUCell):
            super().__init__()
            self.net = net

        def forward(self, *inputs: Tensor) -> Tensor:
            return run_cell(self.net, *inputs)

    params, _ = stack_module_state([Run(net) for net in nets])
    found = vmap(lambda p, *z: functional_call(Run(nets[0]), p, z))(params, x, first, state)
    each = [run_cell(n, *z) for n, *z in zip(nets, x, first, state, strict=True)]
    torch.testing.assert_close(found, torch.stack(each))

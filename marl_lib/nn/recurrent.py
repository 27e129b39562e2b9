"""Memory: a gated recurrent unit that can be run for many networks at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GRUCell(nn.Module):
    """A gated recurrent unit (Cho et al. 2014), the equations of ``torch.nn.GRUCell``.

    torch's own cell is one kernel that ``torch.func.vmap`` cannot batch; this one is two linear
    layers. Their rows are in torch's order (reset, update, new), so the weights of ``weight_ih``
    and ``bias_ih`` are those of ``input``, and of ``weight_hh`` and ``bias_hh`` those of
    ``hidden``.

    Parameters
    ----------
    size_in : int
    size : int
        Length H of the state.
    """

    def __init__(self, size_in: int, size: int):
        super().__init__()
        self.input, self.hidden = nn.Linear(size_in, 3 * size), nn.Linear(size, 3 * size)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Return the next state, (..., size_in) and (..., H) -> (..., H)."""
        return self.step(self.input(x), state)

    def step(self, gates: Tensor, state: Tensor) -> Tensor:
        """Return the next state, where ``input`` was applied before: (..., 3 H) and (..., H).

        r = σ(W_r x + U_r h), z = σ(W_z x + U_z h), n = tanh(W_n x + r (U_n h)),
        h' = (1 - z) n + z h, each product with its bias.
        """
        reset_in, update_in, new_in = gates.chunk(3, dim=-1)
        reset_h, update_h, new_h = self.hidden(state).chunk(3, dim=-1)
        new = (new_in + (reset_in + reset_h).sigmoid() * new_h).tanh()
        return torch.lerp(new, state, (update_in + update_h).sigmoid())


def run_cell(cell: GRUCell, x: Tensor, first: Tensor, state: Tensor) -> Tensor:
    """Return the states that a sequence leads through, each after its step.

    Parameters
    ----------
    cell : GRUCell
    x : (..., T, size_in)
    first : (..., T) bool
        Where a new episode begins: before that step the state is set to zero.
    state : (..., H)
        Before the first step.

    Returns
    -------
    Tensor (..., T, H)
    """
    gates, keep = cell.input(x), (~first).unsqueeze(-1)  # the inputs of all steps in one product
    states = []
    for step_gates, step_keep in zip(gates.unbind(-2), keep.unbind(-2), strict=True):
        state = cell.step(step_gates, state * step_keep)
        states.append(state)
    return torch.stack(states, dim=-2)

"""Memory: cells that can be run for many networks at once, and along sequences."""

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
        Length H of the output, which is the state.
    """

    def __init__(self, size_in: int, size: int):
        super().__init__()
        self.state_size = size
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

    def output(self, state: Tensor) -> Tensor:
        """Return what the cell puts out (..., H): its state."""
        return state


class LSTMCell(nn.Module):
    """Long short-term memory (Hochreiter, Schmidhuber 1997), the equations of ``nn.LSTMCell``.

    Rows are in torch's order (input, forget, cell, output); ``weight_ih`` is that of ``input``,
    ``weight_hh`` that of ``hidden``. The state is output and cell side by side.

    Parameters
    ----------
    size_in : int
    size : int
        Length H of the output; the state has 2 H.
    """

    def __init__(self, size_in: int, size: int):
        super().__init__()
        self.state_size = 2 * size
        self.input, self.hidden = nn.Linear(size_in, 4 * size), nn.Linear(size, 4 * size)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Return the next state, (..., size_in) and (..., 2 H) -> (..., 2 H)."""
        return self.step(self.input(x), state)

    def step(self, gates: Tensor, state: Tensor) -> Tensor:
        """Return the next state, where ``input`` was applied before: (..., 4 H) and (..., 2 H).

        i, f, o = σ(W x + U h), g = tanh(W_g x + U_g h), c' = f c + i g, h' = o tanh c'.
        """
        out, cell = state.chunk(2, dim=-1)
        enter, forget, new, leave = (gates + self.hidden(out)).chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return torch.cat([leave.sigmoid() * cell.tanh(), cell], dim=-1)

    def output(self, state: Tensor) -> Tensor:
        """Return what the cell puts out (..., H): the first half of its state."""
        return state.chunk(2, dim=-1)[0]


CELLS: dict[str, type[GRUCell] | type[LSTMCell]] = {"gru": GRUCell, "lstm": LSTMCell}


def run_cell(cell: GRUCell | LSTMCell, gates: Tensor, first: Tensor, state: Tensor) -> Tensor:
    """Return the states that a sequence leads through, each after its step.

    Parameters
    ----------
    cell : GRUCell or LSTMCell
    gates : (..., T, N, gates)
        The inputs of all steps after ``cell.input``, of N agents whose episodes begin together.
    first : (..., T) bool
        Where a new episode begins: before that step the state is set to zero.
    state : (..., N, S)
        Before the first step.

    Returns
    -------
    Tensor (..., T, N, S)
    """
    keep, states, rows = ~first[..., None, None], [], state.shape[:-1]
    for now, kept in zip(gates.unbind(-3), keep.unbind(-3), strict=True):
        start = (state * kept).flatten(0, -2)
        state = cell.step(now.flatten(0, -2), start).unflatten(0, rows)
        states.append(state)
    return torch.stack(states, dim=-3)

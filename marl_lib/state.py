"""States: what changes as training goes on, as nested dicts of tensors and numbers, and back."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor


def has_state(part: Any) -> bool:
    """Whether something can be kept: a tensor, an object that can be saved, a dict of such."""
    if isinstance(part, dict):
        return all(map(has_state, part.values()))
    return isinstance(part, Tensor) or hasattr(part, "load_state_dict")


def kept(part: Any) -> Any:
    """Return the state of a part as tensors, numbers and dicts of them, which load without code."""
    if isinstance(part, dict):
        return {name: kept(value) for name, value in part.items()}
    if isinstance(part, Tensor):
        return part.detach().clone()
    if isinstance(part, np.ndarray):
        return torch.from_numpy(part)
    return kept(part.state_dict()) if hasattr(part, "state_dict") else copy.copy(part)


def restored(part: Any, state: Any, device: torch.device) -> Any:
    """Return a part in a state that :func:`kept` gave; objects and tensors change in place.

    Raises
    ------
    ValueError
        If a tensor has another shape.
    """
    if isinstance(part, dict):  # of what is not there yet, a new part is made
        return {k: restored(part.get(k), value, device) for k, value in state.items()}
    if hasattr(part, "load_state_dict"):
        part.load_state_dict(state)
    elif isinstance(part, Tensor):
        if part.shape != state.shape:
            raise ValueError(f"expected the shape {part.shape}, got {state.shape}")
        part.copy_(state)
    else:
        return state.to(device, copy=True) if isinstance(state, Tensor) else copy.copy(state)
    return part


def to_arrays(state: Any) -> Any:
    """Return nested dicts of tensors as NumPy arrays."""
    if isinstance(state, dict):
        return {k: to_arrays(v) for k, v in state.items()}
    return state.numpy() if isinstance(state, Tensor) else state

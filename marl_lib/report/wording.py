"""How a report writes numbers, intervals, names and lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from marl_lib.evaluation import bootstrap_interval, iqm

MEASURES = {"gradient_input": "gradient × input"}  # where the name is not good enough to show


def number(value: float) -> str:
    """Return a number with three figures or all its whole ones."""
    if np.isinf(value):
        return "not reached"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def range_of(values: np.ndarray) -> str:
    """Return the lowest and the highest value."""
    low, high = number(values.min()), number(values.max())
    return low if low == high else f"{low} to {high}"


def interval(values: np.ndarray, statistic: Callable[..., Any] = iqm, spec: str = "") -> str:
    """Return a statistic of (runs,) with its interval, as far as there are runs for one."""
    if np.isnan(values).any():
        return "—"
    if len(values) == 1:
        return number(float(values[0]))
    return format(bootstrap_interval(values, statistic), spec).replace("-", "−")


def p_value(p: float) -> str:
    """Return a p-value as it is usually written."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def words(name: str) -> str:
    """Return a name of code as words."""
    return MEASURES.get(name, name.replace("_", " "))


def listed(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)

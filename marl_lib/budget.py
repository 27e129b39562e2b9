"""How much a notebook may train, chosen in one place."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

BUDGETS = ("smoke", "book", "full")


def budget_name() -> str:
    """Return the budget in force: the environment variable ``MARL_BUDGET``, by default "book".

    Raises
    ------
    ValueError
        If the variable holds anything but smoke, book or full.
    """
    name = os.environ.get("MARL_BUDGET", "book")
    if name not in BUDGETS:
        raise ValueError(f"MARL_BUDGET is {name!r}; choose one of {', '.join(BUDGETS)}")
    return name


def budget(*, smoke: T, book: T, full: T) -> T:
    """Return the value for the budget in force.

    "smoke" shows that a notebook runs (seconds), "book" that its point holds (minutes on two CPU
    cores), "full" trains longer.

    >>> steps = budget(smoke=2_000, book=60_000, full=2_000_000)
    """
    return {"smoke": smoke, "book": book, "full": full}[budget_name()]

"""The budget a notebook trains with is chosen by one environment variable."""

from __future__ import annotations

import pytest

from marl_lib.budget import BUDGETS, budget, budget_name


@pytest.mark.parametrize(("value", "steps"), [(None, 2), ("smoke", 1), ("book", 2), ("full", 3)])
def test_the_variable_chooses(
    value: str | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MARL_BUDGET", raising=False)
    if value is not None:
        monkeypatch.setenv("MARL_BUDGET", value)
    assert budget(smoke=1, book=2, full=3) == steps
    assert budget_name() == (value or "book")


@pytest.mark.parametrize("value", ["", "Book", "huge"])
def test_another_value_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARL_BUDGET", value)
    with pytest.raises(ValueError, match=f"MARL_BUDGET is '{value}'; .*{', '.join(BUDGETS)}"):
        budget(smoke=1, book=2, full=3)

"""How an exercise is checked: right answers, typical wrong ones, and what to say to each.

An :class:`Exercise` holds cases (arguments to call the answer with), the right answer, and the
mistakes that people make, each as a function that makes it and a hint. An answer that agrees with
the right one on every case is correct. One that agrees with a mistake on every case gets its hint.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike

Answer = Callable[..., Any]
Status = Literal["not attempted", "correct", "wrong", "error"]


@dataclass(frozen=True, repr=False)
class Result:
    """What a check found; a notebook shows it as a sentence.

    Attributes
    ----------
    exercise : str
    status : {"not attempted", "correct", "wrong", "error"}
    message : str
        The hint, where there is one.
    """

    exercise: str
    status: Status
    message: str = ""

    def __repr__(self) -> str:
        says = {
            "not attempted": "not attempted yet",
            "correct": "correct",
            "wrong": f"not yet. {self.message}",
            "error": self.message,
        }
        return f"{self.exercise}: {says[self.status]}"


@dataclass(frozen=True)
class Case:
    """Arguments to call an answer with.

    Attributes
    ----------
    args : tuple
    hint : str
        For an answer that is wrong here and makes no mistake of the list; empty to show the
        arguments with the right and the given value.
    """

    args: tuple[Any, ...]
    hint: str = ""


@dataclass(frozen=True)
class Mistake:
    """A typical wrong answer and the hint for it."""

    make: Answer
    hint: str


class _NotAttempted(Exception):
    pass


class Exercise:
    """An exercise's check: call it with the function to be checked.

    Parameters
    ----------
    name : str
        As on the page, "Exercise 1".
    cases : sequence of Case
        Together they must tell the right answer from every mistake.
    right : callable
    mistakes : sequence of Mistake
        The first that agrees with the answer on every case gives the hint.
    """

    def __init__(
        self, name: str, cases: Sequence[Case], right: Answer, mistakes: Sequence[Mistake]
    ):
        self.name, self.cases, self.right, self.mistakes = name, cases, right, mistakes

    @property
    def hints(self) -> list[str]:
        """Every hint this check can give, beside those that show a value."""
        return [m.hint for m in self.mistakes] + [c.hint for c in self.cases if c.hint]

    def __call__(self, answer: Answer) -> Result:
        """Check an answer.

        Parameters
        ----------
        answer : callable
            A function that returns ``...`` counts as not attempted.

        Returns
        -------
        Result
        """
        if not callable(answer):
            return self._result("error", f"give the function itself, not {_show(answer)}.")
        try:
            given = [_call(answer, case.args) for case in self.cases]
        except _NotAttempted:
            return self._result("not attempted")
        except Exception as error:  # whatever the reader's code may raise
            return self._result("error", _explain(error))
        expected = self._values(self.right)
        wrong = [i for i, (g, e) in enumerate(zip(given, expected, strict=True)) if not _same(g, e)]
        if not wrong:
            return self._result("correct")
        for mistake in self.mistakes:
            if all(map(_same, given, self._values(mistake.make))):
                return self._result("wrong", mistake.hint)
        at = wrong[0]
        return self._result("wrong", _difference(self.cases[at], given[at], expected[at]))

    def _values(self, function: Answer) -> list[Any]:
        return [_call(function, case.args) for case in self.cases]

    def _result(self, status: Status, message: str = "") -> Result:
        return Result(self.name, status, message)


def _call(answer: Answer, args: tuple[Any, ...]) -> Any:
    value = answer(*copy.deepcopy(args))  # an answer that writes on its arguments spoils no case
    if value is ...:
        raise _NotAttempted
    return value


def _array(value: Any) -> np.ndarray | None:
    """Return a value as a NumPy array of numbers, or None if it is not one."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return array if array.dtype.kind in "biuf" else None


def _same(given: Any, expected: ArrayLike) -> bool:
    a, b = _array(given), _array(expected)
    if a is None or b is None or a.shape != b.shape:
        return False
    return bool(np.allclose(a.astype(float), b.astype(float), rtol=1e-4, atol=1e-6))


def _difference(case: Case, given: Any, expected: Any) -> str:
    """Return what to say of a wrong value that no mistake explains."""
    if given is None:
        return "Your function returns None: is there a return at its end?"
    a, b = _array(given), _array(expected)
    if a is None or b is None:
        return f"Your function returns {_show(given)}, which is not a number or an array of them."
    if a.shape != b.shape:
        return f"The shape should be {b.shape}, yours is {a.shape}."
    if case.hint:
        return case.hint
    args = ", ".join(map(_show, case.args))
    return f"For ({args}) the answer is {_show(expected)}, yours is {_show(given)}."


def _show(value: Any) -> str:
    array = _array(value)
    if array is not None and array.ndim == 0:
        return f"{array.item():.4g}" if array.dtype.kind == "f" else str(array.item())
    if array is not None:
        return np.array2string(array, precision=4, separator=", ", threshold=20)
    return repr(value) if isinstance(value, str) else getattr(value, "__name__", repr(value))


def _explain(error: Exception) -> str:
    """Return what an answer raised, and where in it."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if f.filename != __file__]
    where = f" on its line “{inside[0].line}”" if inside and inside[0].line else ""
    return f"your function raised {type(error).__name__}{where}: {error}"

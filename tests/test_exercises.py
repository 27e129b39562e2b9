"""Every exercise of the book: its stub, its solution, and the wrong answers that people give."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import definitions
import nbformat
import pytest

from marl_lib import check
from marl_lib.check.core import Case, Exercise, Mistake

TESTS = Path(__file__).resolve().parent
CHAPTERS = {path.name[:2]: path for path in sorted((TESTS.parent / "book").glob("[0-9]*.ipynb"))}
PARTS = {
    (number, *part): cells
    for number, path in CHAPTERS.items()
    for part, cells in definitions.gated(nbformat.read(path, as_version=4)).items()
}


def wrong_answers(number):
    """Return the wrong answers to a chapter's exercises: check -> {answer: part of its hint}."""
    path = TESTS / "exercises" / f"ch{number}.py"
    spec = importlib.util.spec_from_file_location(f"wrong_answers_{number}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WRONG


WRONG = {name: answers for number in CHAPTERS for name, answers in wrong_answers(number).items()}


def of_kind(kind):
    keys = [key for key in PARTS if key[1] == kind]
    return pytest.mark.parametrize("number, kind, label", keys, ids=[key[2] for key in keys])


@cache
def chapter_definitions(number):
    return definitions.load_notebook(CHAPTERS[number])


def run(number, cells):
    """Run the cells of an exercise that check something; return what their checks say.

    They run among the chapter's definitions. What else a solution shows, nbval runs.
    """
    namespace = dict(chapter_definitions(number))
    results = []
    for cell in cells:
        if "check." in cell.source:
            *body, last = definitions.parse(cell).body
            assert isinstance(last, ast.Expr), "such a cell ends with its check"
            exec(compile(ast.Module(body, []), "<exercise>", "exec"), namespace)
            code = compile(ast.Expression(last.value), "<exercise>", "eval")
            results.append(eval(code, namespace))
    assert all(isinstance(result, check.Result) for result in results)
    return results


@of_kind("exercise")
def test_an_untouched_stub_is_told_that_it_is_not_attempted(number, kind, label):
    results = run(number, PARTS[number, kind, label])
    assert [r.status for r in results] == ["not attempted"]
    assert repr(results[0]).endswith("not attempted yet")


@of_kind("solution")
def test_the_solution_on_the_page_is_correct(number, kind, label):
    results = run(number, PARTS[number, kind, label])
    assert [r.status for r in results] == ["correct"], results
    assert repr(results[0]).endswith("correct")


@pytest.mark.parametrize(
    "name, answer, fragment",
    [(name, f, text) for name, answers in WRONG.items() for f, text in answers.items()],
    ids=lambda x: getattr(x, "__name__", None) or "",
)
def test_a_typical_wrong_answer_gets_its_hint(name, answer, fragment):
    result = getattr(check, name)(answer)
    assert result.status in ("wrong", "error")
    assert fragment in repr(result)


@pytest.mark.parametrize("name", WRONG)
def test_every_hint_is_given_to_some_wrong_answer(name):
    exercise = getattr(check, name)
    given = {exercise(answer).message for answer in WRONG[name]}
    assert set(exercise.hints) <= given
    assert len(set(exercise.hints)) == len(exercise.hints)


@pytest.mark.parametrize("number", CHAPTERS)
def test_checks_exercises_and_wrong_answers_belong_together(number):
    called = {
        name
        for cell in nbformat.read(CHAPTERS[number], as_version=4).cells
        if cell.cell_type == "code"
        for name in re.findall(rf"check\.(ch{number}_\w+)\(", cell.source)
    }
    assert called == {name for name in check.__all__ if name.startswith(f"ch{number}_")}
    assert called == {name for name in WRONG if name.startswith(f"ch{number}_")}
    labels = [label for n, kind, label in PARTS if (n, kind) == (number, "exercise")]
    assert len(labels) == len(called)
    assert labels == [label for n, kind, label in PARTS if (n, kind) == (number, "solution")]


# The machinery itself -----------------------------------------------------------------------------

DOUBLE = Exercise(
    "Exercise 0",
    [Case((2,)), Case((5,), "Think of five.")],
    lambda x: 2 * x,
    [Mistake(lambda x: x**2, "That is the square.")],
)


@pytest.mark.parametrize(
    "answer, status, text",
    [
        (lambda x: ..., "not attempted", "Exercise 0: not attempted yet"),
        (lambda x: x + x, "correct", "Exercise 0: correct"),
        (lambda x: x * x, "wrong", "Exercise 0: not yet. That is the square."),
        (lambda x: 4, "wrong", "Exercise 0: not yet. Think of five."),
        (lambda x: x, "wrong", "Exercise 0: not yet. For (2) the answer is 4, yours is 2."),
        (lambda x: None, "wrong", "returns None: is there a return"),
        (lambda x: "four", "wrong", "'four', which is not a number"),
        (lambda x: [x, x], "wrong", "The shape should be (), yours is (2,)."),
        (lambda x: float("nan"), "wrong", "yours is nan"),
        (lambda x: x / 0, "error", "raised ZeroDivisionError"),
        (lambda: 4, "error", "raised TypeError"),
        (4, "error", "give the function itself, not 4"),
    ],
)
def test_what_a_check_says(answer, status, text):
    result = DOUBLE(answer)
    assert result.status == status
    assert text in repr(result)


def test_an_answer_that_writes_on_its_arguments_spoils_nothing():
    case = Case(([1.0, 2.0],))
    exercise = Exercise("Exercise 0", [case, case], sum, [])

    def greedy(values):
        total = sum(values)
        values.clear()
        return total

    assert exercise(greedy).status == "correct"
    assert case.args == ([1.0, 2.0],)

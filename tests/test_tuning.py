"""Tuning: equal counts, edges that are left, ties, and a choice that nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marl_lib.config import ConfigError
from marl_lib.evaluation import bootstrap_interval
from marl_lib.plans import ExperimentConfig
from marl_lib.records import final_scores
from marl_lib.tables import methods_table, settings_table
from marl_lib.training import EVALUATION_SEED
from marl_lib.tuning import (
    RATE,
    Trial,
    TuningConfig,
    Values,
    choose,
    line,
    next_round,
    statistic,
    trials,
)

Score = Callable[[Values], float]


def tried(score: Score, settings: list[Values], before: list[Trial] | None = None) -> list[Trial]:
    """Return trials of these settings with the scores that a function gives them."""
    start = before or []
    return start + [
        Trial(n, values, (score(values),)) for n, values in enumerate(settings, len(start) + 1)
    ]


def peak(rate: float, **others: Any) -> Score:
    """Return a score that is highest at a learning rate and at these other values."""

    def score(values: Values) -> float:
        away = abs(math.log(values[RATE] / rate))
        return -away - 10 * sum(values[key] != value for key, value in others.items())

    return score


def tune(config: TuningConfig, methods: dict[str, Score]) -> dict[str, list[Trial]]:
    """Tune methods whose scores are known, as an experiment does."""
    found: dict[str, list[Trial]] = {label: [] for label in methods}
    asked = {label: config.grid() for label in methods}
    for _ in range(config.rounds):
        found = {k: tried(score, asked[k], found[k]) for k, score in methods.items()}
        if not (asked := next_round(found)):
            break
    return found


# The grid -----------------------------------------------------------------------------------------


def test_the_grid_is_every_value_with_every_other() -> None:
    config = TuningConfig((1e-3, 2e-3, 4e-3), {"entropy_coef": (0.0, 0.1), "hidden": ([8], [9])})
    grid = config.grid()
    assert len(grid) == 12 == len({str(values) for values in grid})
    assert grid[0] == {RATE: 1e-3, "entropy_coef": 0.0, "hidden": [8]}
    assert all(next(iter(values)) == RATE for values in grid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": (1e-3, 2e-3)}, "learning_rate must be three or more in increasing"),
        ({"learning_rate": (1e-3, 2e-3, 8e-3)}, "each about the same number of times the last"),
        ({"learning_rate": (4e-3, 2e-3, 1e-3)}, "learning_rate must be three or more in incr"),
        ({"learning_rate": (1e-3, 1e-3, 1e-3)}, "learning_rate must be three or more in incr"),
        ({"learning_rate": (0.0, 1e-3, 2e-3)}, r"learning_rate\[0\] must be positive"),
        ({"also": {RATE: (1.0,)}}, "also must be of other keys than learning_rate"),
        ({"also": {"gamma": ()}}, "also.gamma must be at least one value"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
    ],
)
def test_what_is_no_grid_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TuningConfig(**changes)


def test_a_grid_may_be_rounded_to_what_one_reads_easily() -> None:
    assert len(TuningConfig((3e-4, 1e-3, 3e-3, 1e-2)).grid()) == 4


# Rounds -------------------------------------------------------------------------------------------


def test_the_best_within_the_grid_ends_the_tuning() -> None:
    found = tune(TuningConfig((1e-3, 2e-3, 4e-3)), {"a": peak(2e-3), "b": peak(2.1e-3)})
    assert {label: len(of) for label, of in found.items()} == {"a": 3, "b": 3}
    assert [choose(of).edge for of in found.values()] == [0, 0]


def test_an_edge_is_widened_and_the_others_are_refined() -> None:
    methods = {"low": peak(2e-4), "within": peak(2.8e-3), "high": peak(9e-3)}
    found = tune(TuningConfig((1e-3, 2e-3, 4e-3)), methods)
    rates = {label: [t.values[RATE] for t in of] for label, of in found.items()}
    assert rates["low"] == [1e-3, 2e-3, 4e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5]
    assert rates["high"][:5] == [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    # halfway between the best, 2e-3, and its neighbours; then between the new best and its own
    assert rates["within"][3:5] == pytest.approx([2e-3 / 2**0.5, 2e-3 * 2**0.5], rel=1e-5)
    assert rates["within"][5:] == pytest.approx([2e-3 * 2**0.25, 2e-3 * 2**0.75], rel=1e-5)
    assert [choose(of).best.values[RATE] for of in found.values()] == [
        2.5e-4,
        pytest.approx(2e-3 * 2**0.5, rel=1e-5),
        8e-3,
    ]


def test_the_rounds_end_and_an_edge_that_is_left_is_said() -> None:
    found = tune(TuningConfig((1e-3, 2e-3, 4e-3), rounds=2), {"a": peak(1.0), "b": peak(1e-9)})
    assert {label: len(of) for label, of in found.items()} == {"a": 5, "b": 5}
    assert [choose(of).edge for of in found.values()] == [1, -1]
    assert next_round(found) != {}


def test_more_settings_keep_the_other_values_of_the_best() -> None:
    config = TuningConfig((1e-3, 2e-3, 4e-3), {"gamma": (0.9, 0.99)})
    found = tune(config, {"a": peak(8e-3, gamma=0.99), "b": peak(2e-3, gamma=0.9)})
    more = {label: [t.values for t in of[6:]] for label, of in found.items()}
    assert more["a"] == [{RATE: 8e-3, "gamma": 0.99}, {RATE: 1.6e-2, "gamma": 0.99}]
    assert [values["gamma"] for values in more["b"]] == [0.9, 0.9]
    assert line(found["a"], found["a"][0]) == [1e-3, 2e-3, 4e-3]  # with gamma 0.9
    best = choose(found["a"])
    assert best.best.values == {RATE: 8e-3, "gamma": 0.99} and best.edge == 0


@given(
    peaks=st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4),
    ratio=st.floats(1.3, 10.0),
    rounds=st.integers(1, 5),
    gammas=st.integers(1, 3),
)
def test_every_method_gets_as_many_settings_and_none_twice(
    peaks: list[float], ratio: float, rounds: int, gammas: int
) -> None:
    config = TuningConfig(
        tuple(1e-3 * ratio**i for i in range(4)),
        {"gamma": tuple(range(gammas))},
        rounds=rounds,
    )
    found = tune(config, {str(i): peak(at, gamma=0) for i, at in enumerate(peaks)})
    counts = {len(of) for of in found.values()}
    assert len(counts) == 1 and counts <= {4 * gammas + 2 * i for i in range(rounds)}
    for of in found.values():
        assert [t.number for t in of] == list(range(1, len(of) + 1))
        assert len({str(t.values) for t in of}) == len(of)
    left = any(choose(of).edge for of in found.values())
    assert not left or len(found["0"]) == 4 * gammas + 2 * (rounds - 1)


# The choice ---------------------------------------------------------------------------------------


def at_rates(*scores: float | None) -> list[Trial]:
    """Return trials at 1, 2, 4, ... thousandths; those without a score diverged."""
    return [
        Trial(i + 1, {RATE: 1e-3 * 2**i}, () if score is None else (score,))
        for i, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "number", "edge"),
    [
        ((1.0, 3.0, 2.0), 2, 0),
        ((3.0, 2.0, 1.0), 1, -1),
        ((1.0, 2.0, 3.0), 3, 1),
        ((3.0, 3.0, 3.0), 2, 0),  # no reason to look beyond an edge
        ((1.0, 3.0, 3.0, 1.0), 2, 0),
        ((3.0, 1.0, 3.0), 1, -1),
        ((1.0, 2.0, None), 2, 0),
        ((1.0, None, None), 1, -1),
        ((None, None, None), 1, -1),  # look where rates are lower
        ((-1.0, None, None), 1, -1),
    ],
)
def test_the_highest_score_is_chosen(scores: tuple, number: int, edge: int) -> None:
    choice = choose(at_rates(*scores))
    assert (choice.best.number, choice.edge) == (number, edge)


def test_few_seeds_are_ranked_by_the_mean_and_more_by_the_iqm() -> None:
    assert [statistic(n) for n in (1, 3, 4, 10)] == ["mean", "mean", "IQM", "IQM"]
    assert Trial(1, {RATE: 1e-3}, (0.0, 1.0, 5.0)).score == 2.0
    assert Trial(1, {RATE: 1e-3}, (0.0, 1.0, 3.0, 50.0)).score == 2.0


def run(
    label: str, setting: int, seed: int, returns: list[float] | None, **entries: Any
) -> dict[str, Any]:
    """Return the record of a run of the tuning stage; without returns, of one that diverged."""
    said: dict[str, Any] = {"evaluation": {"episode_return": returns}}
    if returns is None:
        said = {"evaluation": {}, "diverged": "loss of seed 1 is not finite at step 64"}
    values = {RATE: 1e-3 * 2**setting, "hidden": [8]}
    return {"algorithm": label, "setting": setting, "seed": seed, "values": values} | said | entries


def test_trials_are_read_from_records_in_any_order() -> None:
    records = [
        run("a", 2, 7, [3.0, 5.0]), run("a", 1, 8, [2.0, 2.0]), run("a", 2, 8, [0.0, 1.0]),
        run("a", 1, 7, [1.0, 0.0]), run("a", 3, 7, [9.0, 9.0]), run("a", 3, 8, None),
    ]  # fmt: skip
    assert trials(records) == [
        Trial(1, {RATE: 2e-3, "hidden": [8]}, (0.5, 2.0)),
        Trial(2, {RATE: 4e-3, "hidden": [8]}, (4.0, 0.5)),
        Trial(3, {RATE: 8e-3, "hidden": [8]}, ()),  # one seed that diverged is one too many
    ]
    assert trials(records)[2].score == -math.inf


# Nothing of the result is tuned on ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "tuning", "message"),
    [
        ({}, {"first_seed": 9}, "tuning.first_seed must be such that none of 3 .* 0 to 9, got 9"),
        ({"first_seed": 20}, {"first_seed": 18}, "is a seed of the result, 20 to 29, got 18"),
        ({}, {"evaluation_seed": EVALUATION_SEED}, "tuning.evaluation_seed must be of other world"),
        ({}, {"evaluation_seed": EVALUATION_SEED + 1}, "other worlds than those of the result"),
        ({}, {"evaluation_seed": 5}, "tuning.evaluation_seed must be at least 1000003"),
        ({"settings": {}}, {}, "settings must be at least one, to be tuned"),
        ({"sweep": {"num_envs": [8]}, "config": "x"}, {}, "sweep must be empty where settings are"),
    ],
)
def test_what_would_judge_a_setting_by_what_chose_it_is_refused(
    own: dict[str, Any], tuning: dict[str, Any], message: str
) -> None:
    plan: dict[str, Any] = {"settings": {"a": {}}, "references": ("random",), **own}
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig(**plan, tuning=TuningConfig(**tuning))


def test_seeds_on_either_side_and_other_worlds_are_accepted() -> None:
    for first in (17, 30):
        ExperimentConfig(settings={"a": {}}, first_seed=20, tuning=TuningConfig(first_seed=first))
    plan = ExperimentConfig(settings={"a": {}}, tuning=TuningConfig(seeds=4), importance=True)
    assert plan.tuning is not None
    stage = plan.of_tuning(plan.tuning)
    assert (stage.seeds, stage.first_seed, stage.evaluation_seed) == (4, 1000, 2_000_003)
    assert stage.tuning is None and not stage.importance


# Tables -------------------------------------------------------------------------------------------


def result(label: str, seed: int, score: float, **entries: Any) -> dict[str, Any]:
    """Return the record of a run of the result."""
    return {
        "algorithm": label, "seed": seed, "evaluation": {"episode_return": [score]},
        "wall_clock_seconds": 6.0, "replicates_in_process": 2, "environment_steps": 1024,
        "parameters": 1234,
    } | entries  # fmt: skip


TRIED = {
    "good": [run("good", n, s, [float(-abs(n - 2))]) for n in (1, 2, 3) for s in (0, 1)],
    "poor": [run("poor", n, s, [float(n)] if n < 3 else None) for n in (1, 2, 3) for s in (0, 1)],
    "edgy": [run("edgy", n, s, [float(n)]) for n in (1, 2, 3) for s in (0, 1)],
}


def test_the_table_of_methods_says_what_each_took_and_came_to() -> None:
    rng = np.random.default_rng(0)
    tops = {"edgy": 1.5, "good": 10.0, "poor": 1.0}
    results = {
        label: [result(label, s, top + rng.normal()) for s in range(10)]
        for label, top in tops.items()
    } | {"random": [{"algorithm": "random", "seed": 0, "evaluation": {"episode_return": [0.5]}}]}
    rows = {row["method"]: row for row in methods_table(results, TRIED)}
    assert list(rows) == ["edgy", "good", "poor", "random"]
    good = rows["good"]
    assert (good["tried"], good["at an edge"], good["p (Holm)"]) == ("3", "no", "best")
    assert good["chosen"] == "learning rate 0.004, hidden [8]"
    assert (good["parameters"], good["steps"], good["seconds"]) == ("1,234", "1,024", "3")
    scores = final_scores(results["good"])
    assert good["return (IQM)"] == str(bootstrap_interval(scores))
    assert rows["edgy"]["at an edge"] == "the highest"
    assert rows["poor"]["p (Holm)"] == "< 0.001"
    assert rows["random"]["return (IQM)"] == "0.5"
    assert not any(v for k, v in rows["random"].items() if k not in ("method", "return (IQM)"))
    assert "reward" not in good  # of algorithms that have no choice


def test_unequal_sizes_steps_and_rewards_stand_in_the_table() -> None:
    results = {
        "good": [result("good", s, s, reward="team") for s in range(2)],
        "poor": [result("poor", s, s, reward="own", parameters=9, environment_steps=512 * (1 + s))
                 for s in range(2)],
    }  # fmt: skip
    rows = methods_table(results, {k: TRIED[k] for k in results})
    assert [row["reward"] for row in rows] == ["team", "own"]
    assert [row["parameters"] for row in rows] == ["1,234", "9"]
    assert [row["steps"] for row in rows] == ["1,024", "512 to 1,024"]


def test_a_result_that_is_not_there_yet_has_its_tuning() -> None:
    (row,) = methods_table({}, {"good": TRIED["good"]})
    assert row == {"method": "good", "tried": "3", "chosen": "learning rate 0.004, hidden [8]",
                   "at an edge": "no"}  # fmt: skip


def test_the_table_of_settings_shows_all_that_was_tried() -> None:
    rows = settings_table(TRIED)
    assert len(rows) == 9
    shown = {(row["method"], row["setting"]): row for row in rows}
    chosen = shown["good", "learning rate 0.004, hidden [8]"]
    assert (chosen["return (mean)"], chosen["seeds"], chosen["chosen"]) == ("0", "2", "yes")
    assert shown["poor", "learning rate 0.008, hidden [8]"]["return (mean)"] == "diverged"
    assert [row["chosen"] for row in rows].count("yes") == 3

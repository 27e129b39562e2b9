"""Tuning: every method is given the same number of settings, and the best of its own is compared.

A method that was tuned with more care than its rivals wins by that care, one whose best learning
rate lies at the edge of what was tried may have a better one beyond it, and a setting that was
chosen by some seeds looks better on these than on others. So all methods try equally many settings,
learning rates are added until none is best at an edge, and what is chosen runs again with other
seeds in other worlds.

Source: A. Patterson, S. Neumann, M. White, A. White, "Empirical design in reinforcement learning",
Journal of Machine Learning Research 25, 2024.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from marl_lib.config import Config, Count, Natural, Positive, require
from marl_lib.evaluation import iqm
from marl_lib.records import final_scores, rounded

RATE = "learning_rate"
Values = dict[str, Any]  # of one setting: the learning rate, then other keys of the algorithm


@dataclass(frozen=True)
class TuningConfig(Config):
    """How the settings of an experiment's methods are chosen before it is run.

    Parameters
    ----------
    learning_rate : tuple of float
        The first ones to try, in increasing order, each the same number of times the one before.
        Of a method with several (an actor's, a critic's) all are set alike.
    also : dict of key to values
        What else is varied: every value with every other and with every learning rate. Keys are
        those of the algorithm's section, dotted where it has sections of its own.
    rounds : int
        How often settings are tried at most. The first round tries the grid, each further one two
        more settings of every method.
    seeds : int
        How many seeds of each setting.
    first_seed : int
        The first of them; the others follow.
    evaluation_seed : int
        Of the worlds that the settings are compared on.
    """

    learning_rate: tuple[Positive, ...] = (3e-4, 1e-3, 3e-3)
    also: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    rounds: Count = 3
    seeds: Count = 3
    first_seed: Natural = 1000
    evaluation_seed: Natural = 2_000_003

    def check(self) -> None:
        """Refuse learning rates that are no grid, and keys without values."""
        rates = np.array(self.learning_rate)
        ratios = rates[1:] / rates[:-1]
        even = len(rates) >= 3 and ratios.min() > 1 and ratios.max() < 1.25 * ratios.min()
        rule = "three or more in increasing order, each about the same number of times the last"
        require(even, RATE, self.learning_rate, rule)
        require(RATE not in self.also, "also", self.also, f"of other keys than {RATE}")
        for key, values in self.also.items():
            require(len(values) > 0, f"also.{key}", values, "at least one value")

    def grid(self) -> list[Values]:
        """Return the settings of the first round."""
        keys = [RATE, *self.also]
        settings = itertools.product(self.learning_rate, *self.also.values())
        # as records hold them, so that what is read back from there is the same setting
        return [rounded(dict(zip(keys, values, strict=True))) for values in settings]


@dataclass(frozen=True)
class Trial:
    """One setting of one method, tried.

    Attributes
    ----------
    number : int
        Which of its method's, from 1.
    values : dict
    scores : tuple of float
        The mean return over the last evaluation of each seed; none if training diverged.
    """

    number: int
    values: Values
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """What settings are ranked by: :func:`statistic` over the seeds; if it diverged, -inf."""
        if not self.scores:
            return -math.inf
        middle = iqm if statistic(len(self.scores)) == "IQM" else np.mean
        return float(middle(np.array(self.scores)))

    @property
    def others(self) -> Values:
        """The values beside the learning rate."""
        return {k: v for k, v in self.values.items() if k != RATE}


@dataclass(frozen=True)
class Choice:
    """The best setting of a method among those it tried.

    ``edge`` is 0 where it has neighbours on both sides, -1 and 1 where its learning rate is the
    lowest or the highest of those tried with its other values.
    """

    trials: tuple[Trial, ...]
    best: Trial
    edge: int


def statistic(seeds: int) -> str:
    """Return what settings are ranked by: of fewer than four seeds, an IQM cuts none."""
    return "IQM" if seeds >= 4 else "mean"


def trials(records: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """Return what one method tried, from the records of its runs, in the order it was tried in."""
    runs: dict[int, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda r: (r["setting"], r["seed"])):
        runs.setdefault(record["setting"], []).append(record)
    found = []
    for number, of_setting in runs.items():
        diverged = any("diverged" in record for record in of_setting)
        scores = () if diverged else tuple(final_scores([dict(r) for r in of_setting]).tolist())
        found.append(Trial(number, dict(of_setting[0]["values"]), scores))
    return found


def choose(tried: Sequence[Trial]) -> Choice:
    """Return the setting with the highest score, and whether it lies at the edge.

    Of equal ones it is one away from the edge, then the first; of those that diverged, the one with
    the lowest learning rate.
    """

    def rank(trial: Trial) -> tuple[float, ...]:
        if not trial.scores:
            return -math.inf, -trial.values[RATE], -trial.number
        return trial.score, edge(tried, trial) == 0, -trial.number

    best = max(tried, key=rank)
    return Choice(tuple(tried), best, edge(tried, best))


def line(tried: Sequence[Trial], through: Trial) -> list[float]:
    """Return the learning rates tried with the other values of a trial, in increasing order."""
    return sorted(t.values[RATE] for t in tried if t.others == through.others)


def edge(tried: Sequence[Trial], trial: Trial) -> int:
    """Return -1 or 1 if a trial has the lowest or the highest learning rate of its line, else 0."""
    rates, own = line(tried, trial), trial.values[RATE]
    return int(own == rates[-1]) - int(own == rates[0])


def next_round(methods: Mapping[str, Sequence[Trial]]) -> dict[str, list[Values]]:
    """Return two more settings for every method; none if no method's best lies at an edge.

    Where it does, they lie beyond, in steps of the same ratio. Every other method gets the two that
    lie halfway, on the scale of logarithms, between its best and the neighbours of that.
    """
    choices = {label: choose(tried) for label, tried in methods.items()}
    if not any(choice.edge for choice in choices.values()):
        return {}
    return {
        label: [{**choice.best.values, RATE: rate} for rate in _more_rates(choice)]
        for label, choice in choices.items()
    }


def _more_rates(choice: Choice) -> list[float]:
    rates, own = line(choice.trials, choice.best), choice.best.values[RATE]
    at = rates.index(own)
    if choice.edge:
        ratio = own / rates[at - choice.edge]
        more = [own * ratio, own * ratio**2]
    else:
        more = [math.sqrt(own * rates[at + side]) for side in (-1, 1)]
    return [rounded(rate) for rate in more]

"""What a report is about: the runs of one experiment in one world, read from their files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from marl_lib.config import ConfigError
from marl_lib.plans import find_experiment, shipped_experiments
from marl_lib.records import final_scores, load_results

Records = list[dict[str, Any]]

# At or above this mean return over 100 episodes a world counts as solved.
THRESHOLDS = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "MountainCar-v0": -110.0}
NOT_SETTINGS = ("seed", "replicates", "threads", "device")  # of a configuration
TOGETHER = 6  # curves that one figure shows legibly


@dataclass(frozen=True)
class Study:
    """The runs of one experiment in one world.

    Attributes
    ----------
    name, env : str
    runs : dict of label -> records
        Settings that were trained; the first is what the others are held against.
    references : dict of label -> float
        Mean return of policies that did not learn.
    threshold : float or None
    """

    name: str
    env: str
    runs: dict[str, Records]
    references: dict[str, float] = field(default_factory=dict)
    threshold: float | None = None

    @property
    def plain(self) -> dict[str, Records]:
        """The settings that are no point of a sweep."""
        return {label: r for label, r in self.runs.items() if "=" not in label}

    @property
    def baseline(self) -> str:
        """The setting that the others are held against."""
        return next(iter(self.plain or self.runs))

    @property
    def lines(self) -> dict[str, float]:
        """What the return is compared with: the threshold and the references."""
        own = {} if self.threshold is None else {"threshold": self.threshold}
        return own | self.references

    @property
    def several(self) -> dict[str, np.ndarray]:
        """Final scores (runs,) of the settings with more than one seed, the only ones compared."""
        return {label: final_scores(r) for label, r in self.runs.items() if len(r) > 1}

    def groups(self, labels: Iterable[str]) -> list[list[str]]:
        """Return the labels in groups for one figure each, the baseline in all of them."""
        rest = [label for label in labels if label != self.baseline]
        first = [self.baseline] if self.baseline in labels else []
        size = TOGETHER - len(first)
        return [first + rest[i : i + size] for i in range(0, max(1, len(rest)), size)]

    def picture(self, what: str, index: int = 0) -> str:
        """Return the name of the figure that shows ``what``, or of a further one that does."""
        number = f"-{index + 1}" if index else ""
        name = f"{self.name}-{self.env}-{what}{number}".lower()
        return name.replace(":", "-").replace("/", "-")


def read(name: str, results: str | Path | None = None, baseline: str | None = None) -> list[Study]:
    """Return the runs of an experiment, one study for each of its worlds.

    Settings stand as in the plan of an experiment that ships, else by name, a sweep at the end.
    """
    loaded = load_results(name, results)
    planned: list[str] = []
    if name in shipped_experiments():
        planned = [k for k in find_experiment(name)[1].all_settings() if k in loaded]
    order = planned + sorted(loaded, key=lambda label: ("=" in label, label))
    if baseline in loaded:
        order.insert(0, baseline)
    envs = dict.fromkeys(loaded[label][0]["env"] for label in order)
    studies = []
    for env in envs:
        here = {k: loaded[k] for k in dict.fromkeys(order) if loaded[k][0]["env"] == env}
        trained = {label: r for label, r in here.items() if "curve" in r[0]}
        rest = {k: float(final_scores(r).mean()) for k, r in here.items() if k not in trained}
        if trained:
            studies.append(Study(name, env, trained, rest))
    if not studies:
        raise ConfigError(f"{name} holds no training run, only {', '.join(loaded)}")
    return studies


def with_threshold(study: Study, threshold: float | None) -> Study:
    """Return the study with this threshold, or its world's own."""
    own = THRESHOLDS.get(study.env) if threshold is None else threshold
    return replace(study, threshold=own)


def over_training(records: Records, part: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (points,) and a figure (runs, points), at the points that all runs have."""
    steps = [r[part]["steps"] for r in records]
    common = sorted(set(steps[0]).intersection(*steps))
    rows = [
        [r[part][name][at.index(s)] for s in common] for r, at in zip(records, steps, strict=True)
    ]
    return np.array(common), np.array(rows)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration as one mapping of dotted keys, without seeds and machine."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif prefix or key not in NOT_SETTINGS:
            found[prefix + key] = value
    return found


def differences(config: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which two configurations differ, with both values."""
    a, b = flat(config), flat(other)
    pairs = {k: (a.get(k, "unset"), b.get(k, "unset")) for k in dict.fromkeys([*a, *b])}
    return {k: (x, y) for k, (x, y) in pairs.items() if x != y}

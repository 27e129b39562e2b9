"""The plan of an experiment: what is trained how often, how it is tuned, what is measured."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from marl_lib.config import Config, Count, Natural, choice, from_mapping, read_yaml, require
from marl_lib.runs import CONFIGS, shipped
from marl_lib.training import EVALUATION_SEED
from marl_lib.tuning import TuningConfig


@dataclass(frozen=True)
class ExperimentConfig(Config):
    """An experiment: configurations, their variations, and what is measured at the end.

    Parameters
    ----------
    config : str or None
        The configuration all settings start from, by name or path. With None each setting names
        its world and algorithm, and starts from what ships for them.
    settings : dict of label to overrides
        Each label is one curve; its overrides lie over the configuration.
    sweep : dict of dotted key to values
        One setting more for each value, such as ``ppo.learning_rate: [1e-4, 1e-3]``, labelled
        ``learning_rate=0.0001`` and so on; all else stays as in the configuration.
    tuning : TuningConfig or None
        How a learning rate, and what else, is chosen for each setting before it runs; with None
        all stays as it is given.
    tests : dict of label to options of the world
        Other worlds that every trained policy is judged on, beside its own.
    importance : bool
        Measure how much the policy rests on each feature of the observation, see
        :func:`marl_lib.interpret.feature_importance`.
    seeds : int
        How many seeds of each setting.
    first_seed : int
        The first of them; the others follow.
    evaluation_seed : int
        Of the worlds that the last evaluation is played on. Settings chosen by looking at some
        seeds and worlds are judged fairly on others alone.
    per_process : int or None
        Replicates trained side by side in one process; None for all seeds of a setting.
    references : tuple of {"planner", "random"}
        Policies judged on the same worlds, without learning; the planner is the world's
        hand-written policy.
    description : str
    """

    config: str | None = None
    settings: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    sweep: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    tuning: TuningConfig | None = None
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    importance: bool = False
    seeds: Count = 10
    first_seed: Natural = 0
    evaluation_seed: int = EVALUATION_SEED
    per_process: Count | None = None
    references: tuple[Literal["planner", "random"], ...] = ()
    description: str = ""

    def check(self) -> None:
        """Refuse what cannot be run."""
        rule = f"at least {EVALUATION_SEED}, where no run trains"
        asked = self.evaluation_seed
        require(asked >= EVALUATION_SEED, "evaluation_seed", asked, rule)
        require(not self.sweep or self.config is not None, "sweep", self.sweep, "over a config")
        labels = [*self.all_settings(), *self.references]
        require(len(labels) > 0, "settings", self.settings, "at least one, or a reference")
        require(len(labels) == len(set(labels)), "settings", labels, "unlike the references")
        for label in labels:  # becomes part of a file's name
            ok = isinstance(label, str) and re.fullmatch(r"[\w.=+-]+", label)
            require(bool(ok), "a label of settings", label, "of letters, digits, _ . = + and -")
        if self.tuning is not None:
            self._check_tuning(self.tuning)

    def _check_tuning(self, tuning: TuningConfig) -> None:
        """Refuse what would judge a setting by what it was chosen by."""
        require(len(self.settings) > 0, "settings", self.settings, "at least one, to be tuned")
        require(not self.sweep, "sweep", self.sweep, "empty where settings are tuned")
        first, asked = tuning.first_seed, tuning.evaluation_seed
        last = self.first_seed + self.seeds - 1
        apart = first > last or first + tuning.seeds <= self.first_seed
        rule = f"such that none of {tuning.seeds} is a seed of the result, {self.first_seed}"
        require(apart, "tuning.first_seed", first, f"{rule} to {last}")
        require(asked >= EVALUATION_SEED, "tuning.evaluation_seed", asked,
                f"at least {EVALUATION_SEED}, where no run trains")  # fmt: skip
        # a run that stops early is judged on the worlds of the next seed
        apart = abs(asked - self.evaluation_seed) > 1
        rule = f"of other worlds than those of the result, {self.evaluation_seed} and the next"
        require(apart, "tuning.evaluation_seed", asked, rule)

    def all_settings(self) -> dict[str, dict[str, Any]]:
        """Return the overrides of every setting, those of the sweep included."""
        found = {label: dict(overrides or {}) for label, overrides in self.settings.items()}
        for key, values in self.sweep.items():
            for value in values:
                found[f"{key.rsplit('.', 1)[-1]}={value}"] = nested(key, value)
        return found

    def of_tuning(self, tuning: TuningConfig) -> ExperimentConfig:
        """Return the experiment that the tuning stage is, with the seeds and worlds of that."""
        return replace(
            self,
            tuning=None,
            tests={},
            importance=False,
            seeds=tuning.seeds,
            first_seed=tuning.first_seed,
            evaluation_seed=tuning.evaluation_seed,
        )


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return the mapping in which a dotted key has a value."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def shipped_experiments() -> dict[str, Path]:
    """Return the experiments that come with the library, by name."""
    return shipped(CONFIGS / "experiments")


def find_experiment(name_or_path: str) -> tuple[str, ExperimentConfig]:
    """Return name and configuration of an experiment that ships, or of a file."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped_experiments()[choice("experiment", name_or_path, shipped_experiments())]
    return path.stem, from_mapping(ExperimentConfig, read_yaml(path))

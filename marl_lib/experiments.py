"""Experiments: settings times seeds, run wherever joblib can, kept with all that made them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from marl_lib.config import ConfigError, choice, from_mapping, read_yaml, require, to_mapping
from marl_lib.envs.gridworld import BatchedGridWorld
from marl_lib.rollout import play
from marl_lib.runs import (
    CONFIGS,
    RunConfig,
    find_config,
    make_trainer,
    provenance,
    run_config,
    shipped,
    world_maker,
)
from marl_lib.training import EVALUATION_SEED, Trainer, evaluate

REFERENCES = ("planner", "random")


@dataclass(frozen=True)
class ExperimentConfig:
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
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    importance: bool = False
    seeds: int = 10
    first_seed: int = 0
    evaluation_seed: int = EVALUATION_SEED
    per_process: int | None = None
    references: tuple[str, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        require(self.seeds >= 1, "seeds", self.seeds, "at least 1")
        rule = f"at least {EVALUATION_SEED}, where no run trains"
        asked = self.evaluation_seed
        require(asked >= EVALUATION_SEED, "evaluation_seed", asked, rule)
        for name in self.references:
            choice("reference", name, REFERENCES)
        require(not self.sweep or self.config is not None, "sweep", self.sweep, "over a config")
        labels = [*self.all_settings(), *self.references]
        require(len(labels) > 0, "settings", self.settings, "at least one, or a reference")
        require(len(labels) == len(set(labels)), "settings", labels, "unlike the references")
        for label in labels:  # becomes part of a file's name
            ok = isinstance(label, str) and re.fullmatch(r"[\w.=+-]+", label)
            require(bool(ok), "a label of settings", label, "of letters, digits, _ . = + and -")

    def all_settings(self) -> dict[str, dict[str, Any]]:
        """Return the overrides of every setting, those of the sweep included."""
        found = {label: dict(overrides or {}) for label, overrides in self.settings.items()}
        for key, values in self.sweep.items():
            for value in values:
                overrides: Any = value
                for name in reversed(key.split(".")):
                    overrides = {name: overrides}
                found[f"{key.rsplit('.', 1)[-1]}={value}"] = overrides
        return found


def shipped_experiments() -> dict[str, Path]:
    """Return the experiments that come with the library, by name."""
    return shipped(CONFIGS / "experiments")


def find_experiment(name_or_path: str) -> tuple[str, ExperimentConfig]:
    """Return name and configuration of an experiment that ships, or of a file."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = shipped_experiments()[choice("experiment", name_or_path, shipped_experiments())]
    return path.stem, from_mapping(ExperimentConfig, read_yaml(path))


def run_experiment(
    name_or_path: str,
    results: str | Path,
    *,
    overrides: dict[str, Any] | None = None,
    seeds: int | None = None,
    per_process: int | None = None,
    n_jobs: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
) -> list[Path]:
    """Run every setting with every seed and write one JSON file for each.

    The work is handed to joblib, so ``joblib.parallel_config(backend="dask")`` around this call
    runs it on a Dask cluster.

    Parameters
    ----------
    name_or_path : str
        An experiment that ships with the library, or a YAML file.
    results : path
        Files go to ``results/<experiment>/<label>-<seed>.json``, each when its run has ended.
    overrides : dict
        Laid over every setting.
    seeds : int or None
        Number of seeds; ``None`` takes the experiment's.
    per_process : int or None
        Overrides the experiment's own.
    n_jobs : int
        Processes.
    overwrite : bool
        Allow the files of an earlier run to be replaced, all of them.
    resume : bool
        Go on where an earlier run was broken off: runs that were written with the same
        configuration are kept, all others are made.
    command : str or None
        What to record as the command that makes the result again.

    Raises
    ------
    ConfigError
        If a setting is wrong (before anything runs) or results exist already.
    """
    if overwrite and resume:
        raise ConfigError("--overwrite replaces what --resume would keep: pass one of them")
    name, experiment = find_experiment(name_or_path)
    folder = Path(results) / name
    if not (overwrite or resume) and any(folder.glob("*.json")):
        raise ConfigError(
            f"{folder} already holds results; pass --overwrite to replace them, "
            "or --resume to keep the runs of the same configuration and make the others"
        )
    begin, count = experiment.first_seed, experiment.seeds if seeds is None else seeds
    size = min(per_process or experiment.per_process or count, count)
    base = find_config(experiment.config) if experiment.config else {}
    configs = {
        label: run_config(base, varied, overrides or {})
        for label, varied in experiment.all_settings().items()
    }
    units = [
        (label, _with_seeds(config, begin + done, min(size, count - done)), experiment)
        for label, config in configs.items()
        for done in range(0, count, size)
    ]
    # What can fail is done before the long part, which would be lost with it.
    made_by = command or f"marl experiment {name_or_path}"
    extra = {"experiment": name, "command": made_by, **provenance()}
    world = next(iter(configs.values()), None) or run_config(base, overrides or {})
    on = experiment.evaluation_seed
    found = [_reference(name, world, on) for name in experiment.references]
    paths = [_write(folder, {**extra, **record}) for record in found]
    kept = [_written(folder, *unit) if resume else [] for unit in units]
    paths += [path for written in kept for path in written]
    units = [unit for unit, written in zip(units, kept, strict=True) if not written]
    import joblib  # slow to load, and nothing else needs it

    # Written as they come, so that a failure later on loses what it was about and no more.
    run = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    for records in run(joblib.delayed(run_setting)(*unit) for unit in units):
        paths += [_write(folder, {**extra, **record}) for record in records]
    for stale in set(folder.glob("*.json")) - set(paths):
        stale.unlink()  # of the earlier run that was to be replaced: never two runs in one folder
    return paths


def _with_seeds(config: RunConfig, first: int, count: int) -> RunConfig:
    values = to_mapping(config) | {"seed": first, "replicates": count}
    return from_mapping(type(config), values)


def _written(
    folder: Path, label: str, config: RunConfig, experiment: ExperimentConfig
) -> list[Path]:
    """Return the files an earlier run wrote of this unit, or none if one is missing or differs."""
    wanted = json.loads(json.dumps(_rounded(to_mapping(config)))), experiment.evaluation_seed

    def same(path: Path) -> bool:
        record = json.loads(path.read_text()) if path.exists() else {"config": None}
        return (record["config"], record.get("evaluation_seed", EVALUATION_SEED)) == wanted

    paths = [folder / f"{label}-{seed}.json" for seed in config.seeds]
    return paths if all(map(same, paths)) else []


def run_setting(
    label: str, config: RunConfig, experiment: ExperimentConfig
) -> list[dict[str, Any]]:
    """Train one setting with the seeds of ``config``; return one record a seed."""
    trainer = make_trainer(config, progress=sys.stderr.isatty())
    result = trainer.train(experiment.evaluation_seed)
    tests = {name: judge(trainer, config, world) for name, world in experiment.tests.items()}
    seen = _observations(trainer, config) if experiment.importance else None
    return [
        {
            "algorithm": label,
            "env": config.env,
            "seed": seed,
            "config": to_mapping(config),
            "curve": {"steps": result.curve.steps}
            | {k: result.curve.array(k)[i].tolist() for k in result.curve.values},
            "evaluation": {k: v[i].tolist() for k, v in result.final.items()},
            "evaluation_seed": experiment.evaluation_seed,
            "diagnostics": {"steps": result.diagnostics.steps}
            | {k: result.diagnostics.array(k)[i].tolist() for k in result.diagnostics.values},
            "tests": {
                name: {"episode_return": found["episode_return"][i].tolist()}
                for name, found in tests.items()
            },
            "importance": {} if seen is None else _importance(trainer.learner, i, seen[i]),
            "wall_clock_seconds": round(result.seconds, 2),
            "replicates_in_process": config.replicates,
            "device": config.device,
        }
        for i, seed in enumerate(config.seeds)
    ]


def judge(trainer: Trainer, config: RunConfig, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the figures (R, episodes) of a trained policy on its world with other options."""
    other = run_config(to_mapping(config), {"env_options": options})
    policy, n = trainer.learner.policy(), config.replicates
    return evaluate(world_maker(other), policy, n, config.final_episodes)


def _observations(trainer: Trainer, config: RunConfig, steps: int = 64) -> np.ndarray:
    """Return observations (R, n, D) that the trained policies meet on their way."""
    env = world_maker(config)(16 * config.replicates)
    obs, info = env.reset(seed=[EVALUATION_SEED] * config.replicates)
    policy, seen = trainer.learner.policy(), []
    for _ in range(steps):
        seen.append(obs.reshape(config.replicates, 16, -1))
        obs, _, _, _, info = env.step(policy(obs, info))
    return np.concatenate(seen, axis=1)


def _importance(learner: Any, index: int, obs: np.ndarray) -> dict[str, list[float]]:
    """Return how much replicate ``index`` rests on each feature, by every measure there is."""
    from marl_lib.interpret import feature_importance

    return feature_importance(learner.actor.network(index), learner.seen_by(index, obs))


def _reference(name: str, config: RunConfig, seed: int) -> dict[str, Any]:
    """Judge a policy that does not learn on the worlds the learners are judged on."""
    from marl_lib.planning import Planner, random_actions  # brings scipy, which is slow to load

    world = world_maker(config)(config.final_episodes)
    if name == "planner" and isinstance(world, BatchedGridWorld):
        policy: Any = Planner(world)
    elif name == "planner":
        policy = lambda obs, info: world.scripted()  # noqa: E731
    else:
        policy = random_actions(world)
    try:
        episodes = play(world, policy, seed)
    except NotImplementedError as error:
        raise ConfigError(f"there is no planner for {config.env}: {error}") from error
    figures = {
        "episode_return": episodes.returns,
        "episode_length": episodes.lengths,
        **episodes.metrics,
    }
    return {
        "algorithm": name,
        "env": config.env,
        "seed": 0,
        "config": to_mapping(config),
        "evaluation": {k: v.tolist() for k, v in figures.items()},
        "evaluation_seed": seed,
        "device": "cpu",
    }


def _write(folder: Path, record: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['algorithm']}-{record['seed']}.json"
    part = path.with_suffix(".part")
    text = json.dumps(_rounded(record), indent=1)
    # lists of numbers on one line each
    text = re.sub(r"\[[^][{}]+\]", lambda m: " ".join(m[0].split()), text)
    part.write_text(text.replace("[ ", "[").replace(" ]", "]") + "\n")
    part.replace(path)
    return path


def _rounded(value: Any) -> Any:
    """Return nested values with floats to 6 figures: files stay small and differences readable."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def results_folder() -> Path:
    """Return the folder of recorded results: of the repository, else of the installed package.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    """
    package = Path(__file__).parent
    for folder in (package.parent / "book" / "results", package / "_results"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("no recorded results: they come with the repository or the package")


def recorded_experiments(folder: Path) -> list[str]:
    """Return the names of what was recorded in a folder; benchmarks are no experiments."""
    found = (p.name for p in folder.iterdir() if any(p.glob("*.json")))
    return sorted(name for name in found if name != "benchmarks")


def load_results(experiment: str, folder: str | Path | None = None) -> dict[str, list[dict]]:
    """Return the recorded runs of an experiment: label -> records in the order of their seeds.

    Raises
    ------
    ConfigError
        If nothing was recorded under that name; the message lists what was.
    """
    folder = results_folder() if folder is None else Path(folder)
    known = recorded_experiments(folder)
    runs: dict[str, list[dict]] = {}
    for path in (folder / choice("recorded experiment", experiment, known)).glob("*.json"):
        record = json.loads(path.read_text())
        runs.setdefault(record["algorithm"], []).append(record)
    return {label: sorted(runs[label], key=lambda r: r["seed"]) for label in sorted(runs)}


def curves(records: Sequence[dict], name: str = "episode_return") -> tuple[np.ndarray, np.ndarray]:
    """Return the steps (points,) and one figure over training (runs, points) of some records."""
    return np.array(records[0]["curve"]["steps"]), np.array([r["curve"][name] for r in records])


def final_scores(records: Sequence[dict], name: str = "episode_return") -> np.ndarray:
    """Return one figure's mean over the final episodes of each run, (runs,)."""
    return np.array([np.mean(r["evaluation"][name]) for r in records])

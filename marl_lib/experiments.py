"""Experiments: settings times seeds, run wherever joblib can, kept with all that made them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from marl_lib.config import ConfigError, from_mapping, to_mapping
from marl_lib.plans import ExperimentConfig, find_experiment, nested
from marl_lib.records import TUNING, read_record, recorded_files, rounded, write_record
from marl_lib.runs import RunConfig, find_config, placed, provenance, run_config
from marl_lib.training import TrainingDiverged
from marl_lib.tuning import RATE, Trial, TuningConfig, Values, choose, next_round, trials
from marl_lib.units import run_reference, run_setting, try_setting

Configs = dict[str, RunConfig]  # by label
Work = Callable[[str, RunConfig, ExperimentConfig], list[dict[str, Any]]]


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

    Where the experiment has a section ``tuning``, its settings are first completed with what does
    best with other seeds in other worlds; those runs have files too, in a folder beside.

    The work is handed to joblib, so ``joblib.parallel_config(backend="dask")`` around this call
    runs it on a Dask cluster.

    Parameters
    ----------
    name_or_path : str
        An experiment that ships with the library, or a YAML file.
    results : path
        Files go to ``results/<experiment>/<label>-<seed>.json``, those of tuning to
        ``results/<experiment>/tuning/<label>-<setting>-<seed>.json``, each when its run has ended.
    overrides : dict
        Laid over every setting.
    seeds : int or None
        Number of seeds of the result; ``None`` takes the experiment's.
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

    Returns
    -------
    list of path
        The files of the result.

    Raises
    ------
    ConfigError
        If a setting is wrong (before anything runs) or results exist already.
    TrainingDiverged
        If a run of the result diverged, or every setting that was tried of a method.
    """
    if overwrite and resume:
        raise ConfigError("--overwrite replaces what --resume would keep: pass one of them")
    name, experiment = find_experiment(name_or_path)
    experiment = replace(
        experiment,
        seeds=experiment.seeds if seeds is None else seeds,
        per_process=experiment.per_process if per_process is None else per_process,
    )
    folder = Path(results) / name
    if not (overwrite or resume) and recorded_files(folder):
        raise ConfigError(
            f"{folder} already holds results; pass --overwrite to replace them, "
            "or --resume to keep the runs of the same configuration and make the others"
        )
    # What can fail is done before the long part, which would be lost with it.
    configs, world = _configurations(experiment, overrides or {})
    found = [run_reference(k, world, experiment.evaluation_seed) for k in experiment.references]
    made_by = command or f"marl experiment {name_or_path}"
    about = {"experiment": name, "command": made_by, **provenance()}
    paths = [write_record(folder, f"{r['algorithm']}-0", {**about, **r}) for r in found]
    stage = Stage(folder, about, n_jobs, resume)
    tried: list[Path] = []
    if experiment.tuning is not None:
        configs, tried = _tune(configs, experiment, experiment.tuning, stage)
    paths += stage.make(run_setting, configs, experiment)
    for stale in set(recorded_files(folder)) - {*paths, *tried}:
        stale.unlink()  # of the earlier run that was to be replaced: never two runs in one folder
    return paths


def _configurations(
    experiment: ExperimentConfig, overrides: dict[str, Any]
) -> tuple[Configs, RunConfig]:
    """Return the configuration of each setting, and one of the world that references play in."""
    base = find_config(experiment.config) if experiment.config else {}
    settings = experiment.all_settings().items()
    configs = {label: run_config(base, varied, overrides) for label, varied in settings}
    if experiment.tuning is not None:
        for config in configs.values():  # so that one that cannot be is refused here
            [_with_values(config, values) for values in experiment.tuning.grid()]
    world = next(iter(configs.values()), None) or run_config(base, overrides)
    return configs, replace(world, device="cpu")


@dataclass(frozen=True)
class Stage:
    """Where the runs of one stage of an experiment go, and how they are made.

    Parameters
    ----------
    folder : path
    about : dict
        Stands in every record.
    n_jobs : int
        Processes.
    resume : bool
        Keep what was written with the same configuration.
    """

    folder: Path
    about: dict[str, Any]
    n_jobs: int
    resume: bool

    def make(
        self,
        work: Work,
        configs: Configs,
        experiment: ExperimentConfig,
        entries: Mapping[str, dict[str, Any]] | None = None,
    ) -> list[Path]:
        """Run every configuration with every seed; return the files, those kept among them.

        ``entries``, by label, stand in the records too.
        """
        import joblib  # slow to load, and nothing else needs it

        more = entries or {}
        units = list(_units(configs, experiment))
        kept = [
            _written(self.folder, *unit, more.get(unit[0], {})) if self.resume else []
            for unit in units
        ]
        missing = [unit for unit, paths in zip(units, kept, strict=True) if not paths]
        paths = [path for written in kept for path in written]
        # Written as they come, so that a failure later on loses what it was about and no more.
        run = joblib.Parallel(n_jobs=self.n_jobs, return_as="generator_unordered")
        for records in run(joblib.delayed(work)(*unit) for unit in missing):
            for record in records:
                label, seed = record["algorithm"], record["seed"]
                whole = {**self.about, **record, **more.get(label, {})}
                paths.append(write_record(self.folder, f"{label}-{seed}", whole))
        return paths


def _units(
    configs: Configs, experiment: ExperimentConfig
) -> Iterator[tuple[str, RunConfig, ExperimentConfig]]:
    """Yield the work on all seeds, so many at once as share a process."""
    first, count = experiment.first_seed, experiment.seeds
    size = min(experiment.per_process or count, count)
    for label, config in configs.items():
        for done in range(0, count, size):
            seeds = {"seed": first + done, "replicates": min(size, count - done)}
            unit = from_mapping(type(config), to_mapping(config) | seeds)
            yield label, placed(unit), experiment


def _written(
    folder: Path,
    label: str,
    config: RunConfig,
    experiment: ExperimentConfig,
    entries: dict[str, Any],
) -> list[Path]:
    """Return the files an earlier run wrote of this unit, or none if one is missing or differs."""
    own = {"config": to_mapping(config), "evaluation_seed": experiment.evaluation_seed}
    wanted = json.loads(json.dumps(rounded(own | entries)))

    def same(path: Path) -> bool:
        record = read_record(path) if path.exists() else {}
        return record.items() >= wanted.items()

    paths = [folder / f"{label}-{seed}.json" for seed in config.seeds]
    return paths if all(map(same, paths)) else []


# Tuning -------------------------------------------------------------------------------------------


def _tune(
    configs: Configs, experiment: ExperimentConfig, tuning: TuningConfig, stage: Stage
) -> tuple[Configs, list[Path]]:
    """Return each configuration with the values that do best, and the files that say so."""
    stage, experiment = replace(stage, folder=stage.folder / TUNING), experiment.of_tuning(tuning)
    asked = {label: tuning.grid() for label in configs}
    tried: dict[str, list[Trial]] = {label: [] for label in configs}
    paths: list[Path] = []
    for _ in range(tuning.rounds):
        entries: dict[str, dict[str, Any]] = {
            f"{label}-{number}": {"algorithm": label, "setting": number, "values": values}
            for label, settings in asked.items()
            for number, values in enumerate(settings, start=len(tried[label]) + 1)
        }
        varied = {k: _with_values(configs[e["algorithm"]], e["values"]) for k, e in entries.items()}
        paths += stage.make(try_setting, varied, experiment, entries)
        # What is read back is the same whether it was made now or kept.
        records = [read_record(path) for path in paths]
        tried = {k: trials(r for r in records if r["algorithm"] == k) for k in configs}
        asked = next_round(tried)
        if not asked:
            break
    return {k: _with_values(c, _chosen(k, tried[k])) for k, c in configs.items()}, paths


def _chosen(label: str, tried: Sequence[Trial]) -> Values:
    best = choose(tried).best
    if not best.scores:
        raise TrainingDiverged(f"every setting tried of {label} diverged, with {best.values} last")
    return best.values


def _with_values(config: RunConfig, values: Values) -> RunConfig:
    """Return a configuration with tuned values in the section of its algorithm."""
    name = config.algorithm
    rates = [f.name for f in fields(getattr(config, name)) if f.name.endswith(RATE)]
    if not rates:
        raise ConfigError(f"{name} has no {RATE} that could be tuned")
    parts = [dict.fromkeys(rates, values[RATE])]
    parts += [nested(key, value) for key, value in values.items() if key != RATE]
    return run_config(to_mapping(config), *({name: part} for part in parts))

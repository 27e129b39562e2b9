"""Records: one JSON file for each run of an experiment, how they are written and read.

A folder of results holds a folder for each experiment, with a file for each of its runs; beside
them, in ``tuning``, lie those of the runs that its settings were chosen by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marl_lib.config import choice

TUNING = "tuning"  # the folder in an experiment's own


def write_record(folder: Path, name: str, record: dict[str, Any]) -> Path:
    """Write a record as ``name``.json, whole or not at all, lists of numbers on one line each."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    part = path.with_suffix(".part")
    text = json.dumps(rounded(record), indent=1)
    text = re.sub(r"\[[^][{}]+\]", lambda m: " ".join(m[0].split()), text)
    part.write_text(text.replace("[ ", "[").replace(" ]", "]") + "\n")
    part.replace(path)
    return path


def read_record(path: Path) -> dict[str, Any]:
    """Return the record in a file."""
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def rounded(value: Any) -> Any:
    """Return nested values with floats to 6 figures: files stay small and differences readable."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def recorded_files(folder: Path) -> list[Path]:
    """Return the files of an experiment's runs, those of its tuning among them."""
    return [*folder.glob("*.json"), *(folder / TUNING).glob("*.json")]


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
    return _by_label(folder / choice("recorded experiment", experiment, known))


def load_tuning(experiment: str, folder: str | Path | None = None) -> dict[str, list[dict]]:
    """Return the runs that an experiment's settings were chosen by, by label; none if it was not.

    They stand in the order of the settings tried, then of their seeds.
    """
    folder = results_folder() if folder is None else Path(folder)
    return _by_label(folder / experiment / TUNING)


def _by_label(folder: Path) -> dict[str, list[dict]]:
    runs: dict[str, list[dict]] = {}
    for record in map(read_record, folder.glob("*.json")):
        runs.setdefault(record["algorithm"], []).append(record)
    for records in runs.values():
        records.sort(key=lambda r: (r.get("setting", 0), r["seed"]))
    return dict(sorted(runs.items()))


def curves(records: Sequence[dict], name: str = "episode_return") -> tuple[np.ndarray, np.ndarray]:
    """Return the steps (points,) and one figure over training (runs, points) of some records."""
    return np.array(records[0]["curve"]["steps"]), np.array([r["curve"][name] for r in records])


def final_scores(records: Sequence[dict], name: str = "episode_return") -> np.ndarray:
    """Return one figure's mean over the final episodes of each run, (runs,)."""
    return np.array([np.mean(r["evaluation"][name]) for r in records])

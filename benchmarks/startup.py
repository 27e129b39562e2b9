"""Seconds that a process takes to start and import what it needs, before it does anything.

``python -m benchmarks.startup`` starts fresh processes in turns. What importing torch takes is the
floor under every wall-clock time of a learner that is written with it. The record is
``time-startup.json`` (see :mod:`benchmarks.record`).
"""

from __future__ import annotations

import subprocess
import sys
from time import perf_counter

from benchmarks import record

TASK = "start Python and import"
IMPORTS = {
    "marl_lib, all that marl train needs": "import marl_lib.cli, marl_lib.runs",
    "torch alone": "import torch",
    "stable-baselines3": "from stable_baselines3 import PPO",
    "sbx (with jax)": "from sbx import PPO",
}
PACKAGES = ("stable-baselines3", "sbx-rl", "jax")


def seconds(code: str) -> float:
    """Return the wall-clock time of a fresh process that runs ``code``."""
    start = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return perf_counter() - start


def measure(turns: int = 7) -> list[record.Record]:
    """Return the record; a first turn, which brings the files into memory, is left out."""
    load = record.load()
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for turn in range(turns + 1):
        for name, code in IMPORTS.items():
            taken = seconds(code)
            if turn:
                times[name].append(taken)
    rows = [record.row(TASK, name, times[name], IMPORTS[name]) for name in IMPORTS]
    title = "Starting up, before anything is learned"
    facts = {"lower_is_better": True, "load": load, "packages": PACKAGES}
    return [record.record("time-startup", title, "s", rows, **facts)]


def main() -> None:
    """Print the table."""
    print(record.table(*measure()))


if __name__ == "__main__":
    main()

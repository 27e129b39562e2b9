"""What a GPU brings: updates a second on CPU and on CUDA, launched one by one and captured.

``python -m benchmarks.device`` runs, within eight minutes, the tests of learners on a device, then
times updates with 1, 10 and 100 replicates, and a chapter with the budget ``full``. Without CUDA
the same is done on the CPU alone; ``--small`` does little of it, to try the script. No part of
``make bench``. The record is ``device.json`` (see :mod:`benchmarks.record`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks import record
from marl_lib.learner import Learner
from marl_lib.off_policy import OffPolicy
from marl_lib.runs import ALGORITHMS
from marl_lib.spec import Spec
from marl_lib.training import reuse_memory

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["tests/algorithms/test_device.py", "tests/algorithms/test_contract.py"]
CHAPTER = "03-ppo"
SPEC, NUM_ENVS, STEPS = Spec(18, 5, 3), 64, 25
GRU = {"kind": "gru"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "DQN": ("dqn", {"batch_size": 128}),
    "QMIX with a GRU": ("qmix", {"batch_size": 32, "encoder": GRU}),
    "MAPPO": ("mappo", {"batch_size": 400, "epochs": 1, "rollout": STEPS}),
}


def learner(case: str, replicates: int, device: str, capture: bool) -> Learner:
    """Return a learner that has random steps to learn from."""
    name, settings = CASES[case]
    kind, config = ALGORITHMS[name]
    made = kind(SPEC, NUM_ENVS, range(replicates), config(**settings), device=device,
                capture=capture)  # fmt: skip
    rng, rows = np.random.default_rng(0), replicates * NUM_ENVS
    for _ in range(STEPS):
        obs = rng.random((rows, SPEC.n_agents, SPEC.obs_dim), np.float32)
        _, stored = made.act(obs, {})
        reward, ended = rng.random((rows, SPEC.n_agents), np.float32), rng.random(rows) < 0.05
        made.observe(stored, reward, ended, np.zeros(rows, bool), {"final_obs": obs})
    return made


def updater(made: Learner) -> tuple[Callable[[], Any], int]:
    """Return what makes updates from what there is, and how many steps of Adam a call makes."""
    if isinstance(made, OffPolicy):
        return made.learn_once, 1
    made_: Any = made
    batch = made_.prepare()
    parts = NUM_ENVS * STEPS // made_.config.batch_size
    return (lambda: made_.learn(batch)), parts


def rate(call: Callable[[], Any], each: int, device: str, seconds: float) -> float:
    """Return updates a second."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for _ in range(2):
        call()
    wait()
    start, done = perf_counter(), 0
    while perf_counter() - start < seconds:
        call()
        done += each
        if done % (10 * each) == 0:
            wait()  # so that no queue grows that is not counted
    wait()
    return done / (perf_counter() - start)


def ways() -> list[tuple[str, str, bool]]:
    """Return the ways to compute an update: name, device, captured."""
    found = [("CPU", "cpu", False)]
    if torch.cuda.is_available():
        found += [("CUDA, one by one", "cuda", False), ("CUDA, captured", "cuda", True)]
    return found


def updates(counts: Sequence[int], seconds: float, turns: int) -> list[record.Record]:
    """Return rows of updates a second, all ways in turns."""
    rows = []
    for case in CASES:
        for count in counts:
            made = {n: learner(case, count, d, capture) for n, d, capture in ways()}
            calls = {n: updater(x) for n, x in made.items()}
            found: dict[str, list[float]] = {n: [] for n in made}
            for _ in range(turns):
                for name, device, _ in ways():
                    found[name].append(rate(*calls[name], device, seconds))
            work = next(iter(made.values())).work / 1e6
            task = f"{case}, replicates {count} ({work:,.0f} million multiplications forward)"
            rows += [record.row(task, name, values) for name, values in found.items()]
    return rows


def tests(limit: float) -> record.Record:
    """Return a row of how long the tests of learners took, null if one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    if torch.cuda.is_available():
        command += ["-k", "cuda"]
    return record.row("seconds of the tests", " ".join(command[2:]), [_seconds(command, limit)])


def chapter(budget: str, limit: float) -> record.Record:
    """Return a row of how long a chapter takes with a budget, null if longer than the limit."""
    notebook = ROOT / "book" / f"{CHAPTER}.ipynb"
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--stdout",
               str(notebook)]  # fmt: skip
    seconds = _seconds(command, limit, MARL_BUDGET=budget)
    return record.row("seconds of a chapter", f"{CHAPTER} with the budget {budget}", [seconds])


def _seconds(command: Sequence[str], limit: float, **environment: str) -> float | None:
    start = perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, timeout=limit,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        print(f"not within {limit:.0f} s: {' '.join(command[2:])}")
        return None
    if done.returncode:
        print(f"{done.stdout[-2000:]}\nfailed: {' '.join(command[2:])}")
        return None
    return perf_counter() - start


def measure(small: bool) -> list[record.Record]:
    """Return the records: rates of updates, and times of tests and chapter."""
    load = record.load()
    reuse_memory()
    torch.set_num_threads(2)
    counts, seconds, turns = ((1, 10), 0.3, 2) if small else ((1, 10, 100), 1.5, 3)
    rates = record.record(
        "device", "Updates a second on CPU and CUDA", "updates/s", updates(counts, seconds, turns),
        lower_is_better=False, load=load, run="by hand", command="python -m benchmarks.device",
    )  # fmt: skip
    rows = [tests(600 if small else 180), chapter("smoke" if small else "full", 200)]
    times = record.record(
        "device-times", "Tests of the learners and a chapter on this device", "s", rows,
        lower_is_better=True, load=load, run="by hand", command="python -m benchmarks.device",
    )  # fmt: skip
    return [rates, times]


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="little of it, to try the script")
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    for found in measure(given.small):
        found["machine"] += f", {name}"
        print(f"{record.table(found)}\nkept in {record.write(found, given.results)}\n", flush=True)


if __name__ == "__main__":
    main()

"""Environment steps per second of training on cooperative navigation, three agents, 25 steps.

``python -m benchmarks.team_training --also FILE`` measures every task of ours beside the peers of a
JSON file ``[{"task": "mappo", "name": …, "settings": …, "command": ["…"], "versions": {…}, "how":
…}, …]``, in turns, each as a fresh process with one torch thread on a machine that does nothing
else. A command ends with a line of JSON such as::

    {"env_steps": 320000, "seconds": 14.2}

Start-up is not counted, the rest is: acting, stepping, storing, learning; of ours also the two
evaluations at the beginning and the end (an episode each). A step is one of the whole team.

The record is ``team-training.json`` (see :mod:`benchmarks.record`). The peers there are come as
sources, so it is made by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import record
from benchmarks.time_to_threshold import ROOT, Contender, ContenderFailed
from marl_lib.config import choice

NAME = "team-training"
TITLE = "Training a team on cooperative navigation"
VALUES = {
    "batch_size": 800,
    "train_every": 25,
    "learning_starts": 800,
    "buffer_size": 125_000,
    "target_every": 200,
    "encoder": {"hidden": [64, 64]},
    "max_grad_norm": 10.0,
}
PASSES = {
    "critic": "central",
    "rollout": 25,
    "epochs": 4,
    "batch_size": 250,
    "max_grad_norm": 10.0,
}


def two_layers(width: int) -> dict[str, Any]:
    """Return the setting for two hidden layers with ReLU."""
    return {"encoder": {"hidden": [width, width], "activation": "relu"}}


MIXER = {"mixer_width": 32, "hyper_width": 64}


@dataclass(frozen=True)
class Task:
    """What ours and the peers are to train.

    Parameters
    ----------
    title, settings : str
        As the table and the record show them.
    steps : int
        Environment steps of ours.
    algorithm : str
    overrides : dict
        Over the configuration that ships.
    """

    title: str
    settings: str
    steps: int
    algorithm: str
    overrides: Mapping[str, Any]


TASKS = {
    "mappo": Task(
        "MAPPO, equal networks, 4 passes in minibatches of 250 steps",
        "160 environments, 25 steps, 4 epochs, 16 minibatches, two layers of 64, ReLU",
        320_000,
        "mappo",
        {"num_envs": 160, "mappo": PASSES | two_layers(64)},
    ),
    "mappo-128": Task(
        "MAPPO, equal networks twice as wide, 4 passes in minibatches of 250 steps",
        "160 environments, 25 steps, 4 epochs, 16 minibatches, two layers of 128, ReLU",
        240_000,
        "mappo",
        {"num_envs": 160, "mappo": PASSES | two_layers(128)},
    ),
    "qmix": Task(
        "QMIX, equal networks, 800 steps learned from every 25",
        "64 environments, two layers of 64, mixer 32, hypernetworks 64",
        90_000,
        "qmix",
        {"qmix": VALUES | MIXER},
    ),
    "qmix-100": Task(
        "QMIX, equal networks, 800 steps learned from every 100",
        "64 environments, two layers of 64, mixer 32, hypernetworks 64",
        240_000,
        "qmix",
        {"qmix": VALUES | MIXER | {"train_every": 100}},
    ),
    "vdn": Task(
        "VDN, equal networks, 800 steps learned from every 25",
        "64 environments, two layers of 64",
        130_000,
        "vdn",
        {"vdn": VALUES},
    ),
    "mappo-own": Task("MAPPO, everybody's own settings", "as it ships", 320_000, "mappo", {}),
}  # fmt: skip


def train(key: str, steps: int) -> dict[str, float]:
    """Train ours once; return ``env_steps`` and ``seconds``."""
    from marl_lib.runs import make_trainer, run_config

    task = TASKS[key]
    length = {"timesteps": steps, "eval_every": steps, "eval_episodes": 1, "final_episodes": 1}
    base = {"env": "CooperativeNavigation", "algorithm": task.algorithm}
    trainer = make_trainer(run_config(base | length | dict(task.overrides)), progress=False)
    start = perf_counter()
    trainer.train()
    return {"env_steps": trainer.steps, "seconds": perf_counter() - start}


def ours(key: str, steps: int | None = None) -> Contender:
    """Return our side of a task, as a command."""
    task = TASKS[key]
    module = ("{python}", "-m", "benchmarks.team_training")
    command = (*module, "--train", key, "--steps", str(steps or task.steps))
    return Contender("marl_lib", task.settings, command)


def rate(contender: Contender) -> float:
    """Run a contender once; return its environment steps per second.

    Raises
    ------
    ContenderFailed
        If it ends with an error or without its line of JSON.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        contender.filled(0, ""), capture_output=True, text=True, cwd=ROOT, env=environment
    )
    last = ended.stdout.strip().rpartition("\n")[2]
    try:
        said = json.loads(last)
        return said["env_steps"] / said["seconds"]
    except (ValueError, KeyError, TypeError) as error:
        words = " ".join((ended.stderr or ended.stdout).split())[-500:]
        raise ContenderFailed(
            f"{contender.name} gave no result (exit code {ended.returncode}): {words}"
        ) from error


def measure(
    peers: Sequence[tuple[str, Contender]], repetitions: int = 3, steps: int | None = None
) -> record.Record:
    """Run ours and the peers in turns, task by task, and return the record.

    Parameters
    ----------
    peers : (key of the task, contender) pairs
    repetitions : int
    steps : int or None
        Of ours; None for those of the tasks.
    """
    load = record.load()
    keys = [key for key in TASKS if any(of == key for of, _ in peers)]
    entered = [(k, c) for key in keys for k, c in [(key, ours(key, steps)), *peers] if k == key]
    rates: list[list[float]] = [[] for _ in entered]
    for turn in range(repetitions):
        for values, (key, contender) in zip(rates, entered, strict=True):
            values.append(rate(contender))
            print(f"{turn}  {values[-1]:9,.0f}/s  {contender.name:<12}{key}", flush=True)
    rows = [
        record.row(
            TASKS[key].title,
            contender.name,
            values,
            contender.settings,
            **({"versions": contender.versions, "how": contender.how} if contender.how else {}),
        )
        for values, (key, contender) in zip(rates, entered, strict=True)
    ]
    command = "python -m benchmarks.team_training --also FILE"
    return record.record(
        NAME, TITLE, "environment steps a second", rows,
        lower_is_better=False, load=load, run="by hand", command=command,
    )  # fmt: skip


def main() -> None:
    """Train ours once, or measure everybody, show the results and keep them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", choices=TASKS, help="train ours once and print the line")
    parser.add_argument("--steps", type=int, help="of ours (default: those of the task)")
    parser.add_argument("--also", type=Path, help="JSON file of the peers")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--results", type=Path, help="folder to write to (default: none)")
    own = parser.parse_args()
    if own.train:
        print(json.dumps(train(own.train, own.steps or TASKS[own.train].steps)))
        return
    if own.also is None:
        sys.exit("pass --also FILE with the peers, or --train TASK")
    entries = json.loads(own.also.read_text())
    peers = [
        (
            choice("task", entry.pop("task"), TASKS),
            Contender(**{**entry, "command": tuple(entry["command"])}),
        )
        for entry in entries
    ]
    found = measure(peers, own.repetitions, own.steps)
    if own.results:
        record.write(found, own.results)
    print("\n" + record.table(found))


if __name__ == "__main__":
    main()

"""Seconds from the start of a process to a policy that reaches a mean return of 475 on CartPole-v1.

``python -m benchmarks.time_to_threshold`` runs every contender with every seed, in turns, each as a
fresh process on a machine that does nothing else. The clock starts with the process, so start-up,
imports and compilation count, and stops when the contender says in a line of JSON that its policy
has reached the threshold over 100 episodes, and over 100 others, so that luck does not count::

    {"reached": true, "return": 491.2, "steps": 20480, "not_counted": 1.3}

``not_counted`` are the seconds that the contender's policy was judged in: the peers do not pay for
that. A contender that prints no such line is stopped by its end, and its return and steps are read
from the ``summary.json`` of its run folder; ours is one, and pays for its evaluations, its logs and
its checkpoint. Policies act as in training, drawn from their distribution: played greedily, a
network that was never trained can balance the pole by luck.

Peers that come as sources only are run by hand in the same run: ``--also FILE`` names a JSON file
``[{"name": …, "settings": …, "command": ["…", "{seed}"], "versions": {…}, "how": …}, …]``. They go
to a record of their own, together with ours.

The record is ``time-to-threshold.json`` (see :mod:`benchmarks.record`); each row has ``runs``: for
each seed ``seconds``, ``reached``, ``return``, ``steps``, ``not_counted``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import record
from benchmarks.judge import THRESHOLD
from benchmarks.peers import PEERS

ROOT = Path(__file__).resolve().parents[1]
NAME = "time-to-threshold"
TITLE = "Wall-clock to CartPole-v1's threshold, start-up included"
TASK = "CartPole-v1, 475 over 100 episodes"
OURS = (
    "{python} -m marl_lib.cli train --env CartPole-v1 --algorithm ppo --seed {seed} --stop-at 475"
    " --sampled --eval-episodes 100 --quiet --folder {folder}/run"
)
PACKAGES = ("stable-baselines3", "sbx-rl", "jax")


class ContenderFailed(RuntimeError):
    """A contender ended with an error or said nothing; the message has its last words."""


@dataclass(frozen=True)
class Contender:
    """Somebody who trains, as a command.

    Parameters
    ----------
    name, settings : str
        As the table and the record show them.
    command : tuple of str
        ``{python}``, ``{seed}`` and ``{folder}`` (empty, removed afterwards) are filled in.
    versions : dict
        Of a contender that is not installed here.
    how : str
        What a run by hand needs to be repeated; empty for a contender that installs as a package.
    """

    name: str
    settings: str
    command: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)
    how: str = ""

    def filled(self, seed: int, folder: str) -> list[str]:
        """Return the command for one run."""
        values = {"{python}": sys.executable, "{seed}": str(seed), "{folder}": folder}
        parts = list(self.command)
        for mark, value in values.items():
            parts = [part.replace(mark, value) for part in parts]
        return parts


def contenders(ours: str = OURS) -> list[Contender]:
    """Return ours, first, and the peers that install as packages."""
    peers = [
        Contender(
            peer.name,
            peer.settings,
            ("{python}", "-m", "benchmarks.peers", key, "--seed", "{seed}"),
        )
        for key, peer in PEERS.items()
    ]
    shown = ours.replace("{python} -m marl_lib.cli", "marl")
    return [Contender("marl_lib PPO", shown, tuple(shlex.split(ours))), *peers]


def outcome(line: str) -> dict[str, Any] | None:
    """Return what a line of output says about the end of training, or None if it says nothing."""
    if not line.startswith("{"):
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if "reached" in said else None


def run(contender: Contender, seed: int, limit: float = 1_200.0) -> dict[str, Any]:
    """Run a contender once.

    Parameters
    ----------
    limit : float
        Seconds after which the process is killed, which is a failure.

    Returns
    -------
    dict
        ``seed``, ``seconds`` (what was not counted taken off), ``reached``, ``return``, ``steps``,
        ``not_counted``.

    Raises
    ------
    ContenderFailed
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        start = perf_counter()
        process = subprocess.Popen(
            contender.filled(seed, folder),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert process.stdout is not None
        watchdog = threading.Timer(limit, process.kill)
        watchdog.start()
        try:
            said = next(filter(None, map(outcome, process.stdout)), None)
            if said is None:
                process.wait()
            seconds = perf_counter() - start
            if said is None:
                said = _summary(Path(folder), process.returncode)
        finally:
            watchdog.cancel()
            process.kill()  # it may have more to do after the line, which is nobody's time
            process.communicate()
        if said is None:
            errors.seek(0)
            last = " ".join(errors.read().split())[-500:]
            raise ContenderFailed(
                f"{contender.name}, seed {seed}, gave no result (exit code "
                f"{process.returncode}): {last}"
            )
    not_counted = round(said.get("not_counted", 0.0), 3)
    return {
        "seed": seed,
        "seconds": round(seconds - not_counted, 3),
        "reached": bool(said["reached"]),
        "return": round(said["return"], 2),
        "steps": int(said["steps"]),
        "not_counted": not_counted,
    }


def _summary(folder: Path, returncode: int) -> dict[str, Any] | None:
    """Return the outcome of a run of ``marl train``, from the summary that it keeps."""
    files = list(folder.glob("*/summary.json"))
    if returncode or not files:
        return None
    figures = json.loads(files[0].read_text())
    mean = figures["mean"]
    return {"reached": mean >= THRESHOLD, "return": mean, "steps": figures["environment_steps"]}


def in_turns(entered: Sequence[Contender], seeds: int) -> list[list[dict[str, Any]]]:
    """Run all contenders with seeds 0 to ``seeds - 1``, in turns; return the runs of each.

    Each round begins with the next contender, so that what slows a round down hits all alike.
    """
    runs: list[list[dict[str, Any]]] = [[] for _ in entered]
    for seed in range(seeds):
        for turn in range(len(entered)):
            i = (seed + turn) % len(entered)
            runs[i].append(run(entered[i], seed))
            r = runs[i][-1]
            end = f"{r['return']:.0f} after {r['steps']:,} steps"
            print(f"seed {seed}  {r['seconds']:7.2f} s  {end:<28}{entered[i].name}", flush=True)
    return runs


def row(contender: Contender, runs: list[dict[str, Any]]) -> record.Record:
    """Return the row of one contender."""
    values = [r["seconds"] if r["reached"] else None for r in runs]
    more = {"versions": contender.versions, "how": contender.how} if contender.how else {}
    return record.row(TASK, contender.name, values, contender.settings, **more, runs=runs)


def measure(entered: Sequence[Contender] = (), seeds: int = 5) -> list[record.Record]:
    """Run everybody and return the record of the packages, and that of the peers run by hand.

    Parameters
    ----------
    entered : contenders, ours first; by default all that install as packages
    """
    load = record.load()
    entered = entered or contenders()
    found = zip(entered, in_turns(entered, seeds), strict=True)
    ours, *theirs = [row(contender, runs) for contender, runs in found]
    by_hand = [r for r in theirs if "how" in r]
    packaged = [r for r in theirs if "how" not in r]
    facts: dict[str, Any] = {"lower_is_better": True, "load": load, "packages": PACKAGES}
    records = [record.record(NAME, TITLE, "s", [ours, *packaged], **facts)]
    if by_hand:
        facts |= {"run": "by hand", "command": "python -m benchmarks.time_to_threshold --also FILE"}
        records.append(record.record(f"{NAME}-by-hand", TITLE, "s", [ours, *by_hand], **facts))
    return records


def main() -> None:
    """Run, show and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ours", default=OURS, help="our command")
    parser.add_argument("--only", nargs="*", help="parts of names; ours always runs")
    parser.add_argument("--also", type=Path, help="JSON file of peers that are run by hand")
    parser.add_argument("--results", type=Path, help="folder to write to (default: none)")
    own = parser.parse_args()
    entered = contenders(own.ours)
    if own.also:
        entered += [
            Contender(**{**entry, "command": tuple(entry["command"])})
            for entry in json.loads(own.also.read_text())
        ]
    if own.only is not None:  # to try something out: what is kept should be whole
        entered = [entered[0], *(c for c in entered[1:] if any(o in c.name for o in own.only))]
    for found in measure(entered, own.seeds):
        if own.results:
            record.write(found, own.results)
        print("\n" + record.table(found))


if __name__ == "__main__":
    main()

"""Whether a run that is killed at any moment ends as if nothing had happened.

``python -m benchmarks.resume`` trains every algorithm twice: once to the end, and once killed
(SIGKILL) at random moments and resumed until it is done. Weights, optimisers, replay, random
streams, world, curves and log must be the same to the last bit. It prints a line a run and exits
with 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from marl_lib.checkpoint import checkpoint
from marl_lib.runs import ALGORITHMS

TEAM = {"env": "GridPredatorPrey", "num_envs": 16, "timesteps": 40_000, "eval_every": 8_000}
ALONE = {"env": "CartPole-v1", "num_envs": 16, "timesteps": 40_000, "eval_every": 8_000}
OFF = {"learning_starts": 1_000, "train_every": 32, "buffer_size": 20_000, "batch_size": 32}
ON = {"rollout": 25, "epochs": 2, "batch_size": 100}
MEMORY = {"encoder": {"kind": "gru", "hidden": [16], "memory_size": 8}}
CASES: dict[str, dict[str, Any]] = {
    "dqn": {**TEAM, "algorithm": "dqn", "dqn": {**OFF, "bonus": "count"}},
    "vdn": {**TEAM, "algorithm": "vdn", "vdn": OFF},
    "qmix": {**TEAM, "algorithm": "qmix", "qmix": {**OFF, **MEMORY}},
    "wqmix": {**TEAM, "algorithm": "wqmix", "wqmix": OFF},
    "pqn": {**TEAM, "algorithm": "pqn", "pqn": {**ON, **MEMORY}},
    "pqn_vdn": {**TEAM, "algorithm": "pqn_vdn", "pqn_vdn": ON},
    "ppo": {**ALONE, "algorithm": "ppo", "ppo": ON, "replicates": 2},
    "attention_ppo": {**ALONE, "algorithm": "attention_ppo", "attention_ppo": ON},
    "ippo": {**TEAM, "algorithm": "ippo", "ippo": {**ON, **MEMORY}},
    "mappo": {**TEAM, "algorithm": "mappo", "mappo": ON},
    "maddpg": {**TEAM, "algorithm": "maddpg", "maddpg": {**OFF, "share_parameters": False}},
    "sac": {
        "env": "CooperativeNavigation",
        "env_options": {"continuous": True},
        "algorithm": "sac",
        "num_envs": 16,
        "timesteps": 8_000,
        "eval_every": 2_000,
        "sac": OFF,
    },
}


def command(*arguments: str) -> list[str]:
    """Return the command line of a training."""
    return [sys.executable, "-m", "marl_lib.cli", "train", "--quiet", *arguments]


def configuration(name: str, folder: Path) -> Path:
    """Write the configuration of a case; return its path."""
    few = {"eval_episodes": 4, "final_episodes": 4, "checkpoint_every": 2_000}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**CASES[name], **few}))
    return path


def killed_and_resumed(config: Path, folder: Path, moments: list[float]) -> int:
    """Train to the end, killed after each of these seconds; return how often it was."""
    arguments, times = ["--config", str(config), "--folder", str(folder)], 0
    for seconds in [*moments, None]:
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
        try:
            if process.wait(seconds) != 0:
                raise SystemExit(f"{config.stem}: the training itself failed")
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            times += 1
        if (folder / "config.yaml").exists():
            arguments = ["--resume", str(folder)]
    return times


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """Return where two states differ first, or None; wall-clock time does not count."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"
        found = (difference(one[k], other[k], f"{where}/{k}") for k in one if k != "seconds")
        return next((place for place in found if place), None)
    if isinstance(one, Tensor):
        same = one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    else:
        same = one == other
    return None if same else where


def compare(whole: Path, broken: Path) -> str | None:
    """Return where two finished runs differ first, or None."""
    with checkpoint(whole / "checkpoint.pt") as one, checkpoint(broken / "checkpoint.pt") as other:
        place = difference(one, other)
    logs = [(f / "log.jsonl").read_text().splitlines() for f in (whole, broken)]
    if not place and [json.loads(x) for x in logs[0]] != [json.loads(x) for x in logs[1]]:
        place = "log.jsonl"
    return place


def main() -> None:
    """Run every case and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    own, failed, left = parser.parse_args(), 0, 0
    left, moments = own.kills, random.Random(own.seed)
    assert set(ALGORITHMS) == set(CASES), "every algorithm has its case"
    for i, name in enumerate(own.only):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            config, whole, broken = configuration(name, folder), folder / "a", folder / "b"
            started = time.monotonic()
            subprocess.run(
                command("--config", str(config), "--folder", str(whole)),
                check=True,
                stdout=subprocess.DEVNULL,
            )
            took, share = time.monotonic() - started, -(-left // (len(own.only) - i))
            kills = killed_and_resumed(
                config, broken, [moments.uniform(0.2, 0.9) * took for _ in range(share)]
            )
            left -= kills
            found = compare(whole, broken)
        failed += found is not None
        print(f"{name:14} killed {kills} times: {found or 'the same to the last bit'}", flush=True)
    print(f"{own.kills - left} kills, {failed} runs differ")
    raise SystemExit(failed > 0 or left > 0)


if __name__ == "__main__":
    main()

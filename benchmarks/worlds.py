"""How fast the worlds step, beside those of other packages, in one run.

``python -m benchmarks.worlds`` prints environment steps per second under random play, episodes and
their restarts included. Ours and theirs take turns, and the median over the turns is shown, so that
the ratio holds on a machine that is busy with other things. The record is ``worlds.json``
(see :mod:`benchmarks.record`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from benchmarks import record
from marl_lib.envs.classic import BatchedAcrobot, BatchedCartPole, BatchedMountainCar
from marl_lib.envs.gridworld import BatchedGridWorld
from marl_lib.envs.particle import BatchedCooperativeNavigation

WORLDS: dict[str, Callable[[int], VectorEnv]] = {
    "CartPole-v1": BatchedCartPole,
    "Acrobot-v1": BatchedAcrobot,
    "MountainCar-v0": BatchedMountainCar,
}


def steps_per_second(env: Any, actions: Sequence[np.ndarray] | np.ndarray, seconds: float) -> float:
    """Return the environment steps per second of a batch over at least ``seconds``."""
    count, start = 0, perf_counter()
    while (elapsed := perf_counter() - start) < seconds:
        for action in actions:
            env.step(action)
        count += len(actions)
    return count * env.num_envs / elapsed


def side_by_side(
    ours: Any, theirs: VectorEnv, seconds: float = 0.5, turns: int = 5
) -> tuple[list[float], list[float]]:
    """Return the steps per second of two batches that take turns under random play."""
    rates: tuple[list[float], list[float]] = ([], [])
    theirs.action_space.seed(0)
    actions = [theirs.action_space.sample() for _ in range(20)]
    for env in (ours, theirs):
        env.reset(seed=0)
    for _ in range(turns):
        for env, rate in zip((ours, theirs), rates, strict=True):
            rate.append(steps_per_second(env, actions, seconds))
    return rates


def classic_rows(batches: Sequence[int], seconds: float) -> list[record.Record]:
    """Return the rows of the classic control worlds."""
    rows = []
    for name, world in WORLDS.items():
        for num_envs in batches:
            theirs = gymnasium.make_vec(name, num_envs, vectorization_mode="sync")
            ours, peer = side_by_side(world(num_envs), theirs, seconds)
            task = f"{name}, B = {num_envs:,}"
            rows += [record.row(task, "marl_lib", ours), record.row(task, "SyncVectorEnv", peer)]
            theirs.close()
    return rows


def grid_row(num_envs: int = 1_024, n_agents: int = 3, seconds: float = 2.0) -> record.Record:
    """Return the agent steps per second of the grid world (8 x 8, 3 targets, 50 steps)."""
    env = BatchedGridWorld(num_envs, grid_size=(8, 8), n_agents=n_agents, n_targets=3, max_steps=50)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = rng.integers(0, env.n_actions, (50, num_envs, n_agents))
    rates = [steps_per_second(env, actions, seconds / 5) * n_agents for _ in range(5)]
    task = f"grid world 8 × 8, N = {n_agents}, B = {num_envs:,}, agent steps"
    return record.row(task, "marl_lib", rates)


class Mpe2:
    """One simple_spread of mpe2 as a batch of one, started anew after its 25 steps."""

    num_envs = 1

    def __init__(self) -> None:
        from mpe2 import simple_spread_v3

        self.env = simple_spread_v3.parallel_env(local_ratio=0.0)
        self.env.reset(seed=0)

    def step(self, action: np.ndarray) -> None:
        """Take the first environment's actions (N,) of a batch."""
        _, _, _, over, _ = self.env.step(dict(zip(self.env.agents, action[0], strict=True)))
        if all(over.values()):
            self.env.reset()


class Vmas:
    """A batch of VMAS's simple_spread, started anew after 25 steps."""

    def __init__(self, num_envs: int):
        import torch
        import vmas

        self.env = vmas.make_env(
            "simple_spread", num_envs=num_envs, device="cpu", continuous_actions=False, n_agents=3
        )
        self.num_envs, self.tensor, self.steps = num_envs, torch.as_tensor, 0
        self.env.reset()

    def step(self, action: np.ndarray) -> None:
        """Take actions (B, N)."""
        self.env.step(list(self.tensor(action).unbind(1)))
        self.steps += 1
        if self.steps % 25 == 0:
            self.env.reset()


def particle_rows(num_envs: int, seconds: float, turns: int = 5) -> list[record.Record]:
    """Return the rows of cooperative navigation, N = 3, beside the original and VMAS."""
    ours = BatchedCooperativeNavigation(num_envs)
    ours.reset(seed=0)
    entered = {"marl_lib": ours, "mpe2, one environment": Mpe2(), "VMAS": Vmas(num_envs)}
    actions = np.random.default_rng(0).integers(0, 5, (25, num_envs, 3))
    rates: dict[str, list[float]] = {name: [] for name in entered}
    for _ in range(turns):
        for name, env in entered.items():
            rates[name].append(steps_per_second(env, actions, seconds))
    task = f"cooperative navigation, N = 3, B = {num_envs:,}"
    return [record.row(task, name, rate) for name, rate in rates.items()]


def measure(
    batches: Sequence[int] = (256, 1_024), seconds: float = 0.5, particles: bool = True
) -> list[record.Record]:
    """Return the record of all worlds; those of particles have peers that must be installed."""
    load = record.load()
    rows = [*classic_rows(batches, seconds), grid_row(seconds=4 * seconds)]
    rows += particle_rows(max(batches), seconds) if particles else []
    packages = ("mpe2", "vmas") if particles else ()
    title = "Worlds under random play, restarts included"
    return [
        record.record(
            "worlds",
            title,
            "environment steps/s",
            rows,
            lower_is_better=False,
            load=load,
            packages=packages,
        )
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1_024])
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one turn")
    arguments = parser.parse_args()
    print(record.table(*measure(arguments.batches, arguments.seconds)))


if __name__ == "__main__":
    main()

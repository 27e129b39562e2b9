"""How fast the worlds step, beside gymnasium's, in one run.

``python -m benchmarks.worlds`` prints environment steps per second under random play, episodes and
their restarts included. Ours and theirs take turns, and the median over the turns is shown, so that
the ratio holds on a machine that is busy with other things.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from marl_lib.envs.classic import BatchedAcrobot, BatchedCartPole, BatchedMountainCar

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
) -> tuple[float, float]:
    """Return the median steps per second of two batches that take turns under random play."""
    rates: tuple[list[float], list[float]] = ([], [])
    theirs.action_space.seed(0)
    actions = [theirs.action_space.sample() for _ in range(20)]
    for env in (ours, theirs):
        env.reset(seed=0)
    for _ in range(turns):
        for env, rate in zip((ours, theirs), rates, strict=True):
            rate.append(steps_per_second(env, actions, seconds))
    return statistics.median(rates[0]), statistics.median(rates[1])


def classic_table(batches: Sequence[int], seconds: float) -> list[str]:
    """Return the lines of the table of the classic control worlds."""
    lines = [f"{'world':<16}{'B':>6}{'ours, steps/s':>16}{'SyncVectorEnv':>16}{'ratio':>8}"]
    for name, world in WORLDS.items():
        for num_envs in batches:
            theirs = gymnasium.make_vec(name, num_envs, vectorization_mode="sync")
            ours, peer = side_by_side(world(num_envs), theirs, seconds)
            lines.append(f"{name:<16}{num_envs:>6}{ours:>16,.0f}{peer:>16,.0f}{ours / peer:>8.1f}")
            theirs.close()
    return lines


def grid_line(num_envs: int = 1_024, n_agents: int = 3, seconds: float = 2.0) -> str:
    """Return the agent steps per second of the grid world (8 x 8, 3 targets, 50 steps)."""
    from marl_lib.envs.gridworld import BatchedGridWorld

    env = BatchedGridWorld(num_envs, grid_size=(8, 8), n_agents=n_agents, n_targets=3, max_steps=50)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = rng.integers(0, env.n_actions, (50, num_envs, n_agents))
    rate = statistics.median(steps_per_second(env, actions, seconds / 5) for _ in range(5))
    return f"grid world 8 x 8, N = {n_agents}, B = {num_envs}: {rate * n_agents:,.0f} agent-steps/s"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1_024])
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one turn")
    arguments = parser.parse_args()
    print("\n".join(classic_table(arguments.batches, arguments.seconds)))
    print(grid_line())


if __name__ == "__main__":
    main()

"""What ten replicates in one process cost, as a multiple of one.

``python -m benchmarks.replicates`` times DQN updates (draw, loss, gradients, optimiser) of one and
of ten replicates in turns and shows medians and their ratio. The record is ``replicates.json``
(see :mod:`benchmarks.record`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch

from benchmarks import record
from marl_lib.algorithms.dqn import DQN, DQNConfig
from marl_lib.spec import Spec
from marl_lib.training import reuse_memory

OBS_DIM, N_ACTIONS, NUM_ENVS = 17, 5, 64


def learner(replicates: int, batch_size: int, n_agents: int) -> DQN:
    """Return a learner whose replay is filled with random transitions."""
    config = DQNConfig(batch_size=batch_size, buffer_size=50 * NUM_ENVS)
    dqn = DQN(Spec(OBS_DIM, N_ACTIONS, n_agents), NUM_ENVS, range(replicates), config)
    rng = np.random.default_rng(0)
    rows = replicates * NUM_ENVS
    for _ in range(50):
        _, stored = dqn.act(rng.random((rows, n_agents, OBS_DIM), np.float32), {})
        reward, ended = rng.random((rows, n_agents), np.float32), rng.random(rows) < 0.05
        led_to = {"final_obs": rng.random((rows, n_agents, OBS_DIM), np.float32)}
        dqn.observe(stored, reward, ended, np.zeros(rows, bool), led_to)
    return dqn


def milliseconds(dqn: DQN, updates: int = 40) -> float:
    """Return the wall-clock time of one update."""
    start = perf_counter()
    for _ in range(updates):
        dqn.learn_once()
    return (perf_counter() - start) / updates * 1e3


def compare(batch_size: int, n_agents: int, turns: int = 7) -> tuple[list[float], list[float]]:
    """Return the milliseconds of an update with one and with ten replicates, in turns."""
    learners = [learner(r, batch_size, n_agents) for r in (1, 10)]
    for dqn in learners:
        milliseconds(dqn, 20)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for dqn, taken in zip(learners, times, strict=True):
            taken.append(milliseconds(dqn))
    return times


def measure(threads_tried: Sequence[int] = (1, 2)) -> list[record.Record]:
    """Return the record; the ratio of ten replicates is their cost as a multiple of one."""
    load, rows = record.load(), []
    reuse_memory()
    for batch_size, n_agents in ((32, 1), (128, 1), (512, 1), (128, 3)):
        for threads in threads_tried:
            torch.set_num_threads(threads)
            one, ten = compare(batch_size, n_agents)
            task = f"batch {batch_size}, agents {n_agents}, threads {threads}"
            rows += [record.row(task, "one replicate", one), record.row(task, "ten", ten)]
    title = "One DQN update of one replicate and of ten in one process"
    return [record.record("replicates", title, "ms", rows, lower_is_better=True, load=load)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    print(record.table(*measure(parser.parse_args().threads)))


if __name__ == "__main__":
    main()

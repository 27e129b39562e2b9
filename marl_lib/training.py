"""The training loop: a learner and a world in, curves and a judged policy out."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from marl_lib.checkpoint import checkpoint, save_checkpoint
from marl_lib.config import Config, Count, Finite
from marl_lib.envs.base import BatchedParallelEnv
from marl_lib.evaluation import summary
from marl_lib.learner import Learner
from marl_lib.log import Curve, RunLog
from marl_lib.rollout import Episodes, Policy, play
from marl_lib.state import kept, to_arrays

MakeEnv = Callable[[int], BatchedParallelEnv]

EVALUATION_SEED = 1_000_003  # the worlds every learner is judged on; no training seed is this large


class TrainingDiverged(RuntimeError):
    """A loss was not finite; the message names the step and the seed."""


@dataclass(frozen=True)
class LoopConfig(Config):
    """Settings of a training loop; steps are environment steps of one replicate.

    Parameters
    ----------
    timesteps : int
    eval_every : int
        Steps between evaluations of the greedy policy; there is one at start and end too.
    eval_episodes : int
        Episodes of each.
    final_episodes : int
        Episodes of the last evaluation, which the summary is made from.
    checkpoint_every : int
        Steps between checkpoints, when training has a folder; one is written at the end too.
    stop_at : float or None
        End training when an evaluation's mean return reaches this in every replicate. The last
        evaluation is then played on other worlds, so that a lucky one does not count twice.
    sampled : bool
        Judge a policy as it acts in training, drawn from its distribution, and not by the likeliest
        action.
    """

    timesteps: Count = 100_000
    eval_every: Count = 10_000
    eval_episodes: Count = 32
    final_episodes: Count = 100
    checkpoint_every: Count = 50_000
    stop_at: Finite | None = None
    sampled: bool = False


@dataclass
class TrainingResult:
    """What training came to.

    Attributes
    ----------
    curve : Curve
    diagnostics : Curve
        What the learner reports (losses and the like), means over the updates between evaluations.
    final : dict of name to array (R, episodes)
        ``episode_return``, ``episode_length`` and the world's own figures, of the last evaluation.
    steps : int
        Environment steps of one replicate.
    seconds : float
        Wall-clock time of training, evaluations included; summed over resumed parts.
    """

    curve: Curve
    diagnostics: Curve
    final: dict[str, np.ndarray]
    steps: int
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the final evaluation over all replicates in a few figures."""
        figures = summary(self.final["episode_return"].ravel())
        return {**figures, "environment_steps": self.steps, "seconds": round(self.seconds, 2)}


def evaluate(
    make_env: MakeEnv, policy: Policy, replicates: int, episodes: int, seed: int = EVALUATION_SEED
) -> dict[str, np.ndarray]:
    """Judge a policy of R replicates, each on the same worlds.

    Returns
    -------
    dict of arrays (R, episodes)
        ``episode_return`` (of the team), ``episode_length`` and the world's own figures.
    """
    env = make_env(replicates * episodes)
    result: Episodes = play(env, policy, [seed] * replicates)
    figures = {"episode_return": result.returns, "episode_length": result.lengths, **result.metrics}
    return {name: value.reshape(replicates, episodes) for name, value in figures.items()}


def reuse_memory() -> None:
    """Ask the C library to keep freed memory for the next tensor instead of giving it back.

    An update makes and frees tensors of a megabyte or so; giving their pages back and asking for
    them again took a third of the time of ten replicates (12.3 ms an update, 8.1 ms without).
    Does nothing where the C library is not glibc.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(mmap_threshold, 32 << 20)
    libc.mallopt(trim_threshold, 1 << 30)


class Trainer:
    """The loop: act, step, store, learn; evaluate, log and checkpoint on the way.

    Parameters
    ----------
    make_env : callable
        ``make_env(num_envs)`` returns a fresh batched world.
    learner : Learner
        With R = ``len(learner.seeds)`` replicates on ``learner.num_envs`` environments each.
    config : LoopConfig
    folder : path or None
        Where log.jsonl, TensorBoard events and the checkpoint go; ``None`` keeps nothing.
    progress : bool
        Show a progress bar.
    """

    def __init__(
        self,
        make_env: MakeEnv,
        learner: Learner,
        config: LoopConfig,
        folder: str | Path | None = None,
        progress: bool = True,
    ):
        reuse_memory()
        self.make_env, self.learner, self.config = make_env, learner, config
        self.replicates = len(learner.seeds)
        self.env = make_env(self.replicates * learner.num_envs)
        self.log = RunLog(Path(folder)) if folder is not None else None
        self.progress = progress
        self.steps, self.seconds = 0, 0.0
        self.curve, self.diagnostics = Curve(), Curve()
        self.metrics: dict[str, np.ndarray] = {}  # sums since the last evaluation, (R,) each
        self.updates = 0  # calls of update() in them
        self.obs, self.info = self.env.reset(seed=learner.seeds)

    def train(self, evaluation_seed: int = EVALUATION_SEED) -> TrainingResult:
        """Run until ``timesteps``; from the checkpoint on, if one was loaded.

        Parameters
        ----------
        evaluation_seed : int
            Of the worlds of the last evaluation.
        """
        c, started = self.config, time.monotonic() - self.seconds
        with tqdm(
            total=c.timesteps, initial=self.steps, disable=not self.progress, unit="step"
        ) as bar:
            while self.steps < c.timesteps:
                if self._due(c.eval_every):
                    self._evaluate(bar)
                    if self.steps and self._reached():  # what was not trained reaches nothing
                        break
                self._step()
                bar.update(self.learner.num_envs)
                if self._due(c.checkpoint_every) and self.steps < c.timesteps:
                    self.seconds = time.monotonic() - started
                    self.save()
            self._evaluate(bar)
        # what stopped training may have been luck, so it is judged again on other worlds
        seed = evaluation_seed + (c.stop_at is not None)
        policy = self._policy()
        final = evaluate(self.make_env, policy, self.replicates, c.final_episodes, seed)
        self.seconds = time.monotonic() - started
        self.save()
        return TrainingResult(self.curve, self.diagnostics, final, self.steps, self.seconds)

    def _due(self, every: int) -> bool:
        """Whether a multiple of ``every`` was passed in the last step."""
        return self.steps % every < self.learner.num_envs

    def _policy(self) -> Policy:
        """Return the policy as it is to be judged."""
        return self.learner.policy(self.config.sampled)

    def _reached(self) -> bool:
        goal = self.config.stop_at
        return goal is not None and min(self.curve.values["episode_return"][-1]) >= goal

    def _step(self) -> None:
        action, stored = self.learner.act(self.obs, self.info)
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.learner.observe(stored, reward, terminated, truncated, info)
        self.obs, self.info = obs, info
        self.steps += self.learner.num_envs
        if metrics := self.learner.update():
            self._check_finite(metrics)
            self.updates += 1
            self.metrics = {k: self.metrics.get(k, 0.0) + v for k, v in metrics.items()}

    def _check_finite(self, metrics: dict[str, np.ndarray]) -> None:
        for name, value in metrics.items():
            if not np.isfinite(value).all():
                seed = self.learner.seeds[int(np.flatnonzero(~np.isfinite(value))[0])]
                kept = f"; the last good state is in {self.log.checkpoint}" if self.log else ""
                raise TrainingDiverged(
                    f"{name} of seed {seed} is not finite at step {self.steps}{kept}"
                )

    def _evaluate(self, bar: tqdm) -> None:
        if self.curve.steps[-1:] == [self.steps]:
            return  # done already: the end is a multiple of ``eval_every``, or a run is prolonged
        policy, episodes = self._policy(), self.config.eval_episodes
        figures = evaluate(self.make_env, policy, self.replicates, episodes)
        means = {name: value.mean(1) for name, value in figures.items()}
        self.curve.add(self.steps, means)
        bar.set_postfix({"return": f"{means['episode_return'].mean():.2f}"})
        reported = {name: value / self.updates for name, value in self.metrics.items()}
        if self.updates:
            self.diagnostics.add(self.steps, reported)
        self.metrics, self.updates = {}, 0
        if self.log:
            self.log.write(self.steps, {**means, **reported}, self.learner.seeds)

    def save(self) -> None:
        """Write the checkpoint atomically, if there is a folder."""
        if self.log is None:
            return
        state = {
            "steps": self.steps,
            "seconds": self.seconds,
            "curve": vars(self.curve),
            "diagnostics": vars(self.diagnostics),
            "updates": self.updates,
            "log_bytes": self.log.sizes(),
            "torch": torch.get_rng_state(),
            "metrics": kept(self.metrics),
            "learner": self.learner.state_dict(),
            "env": kept(self.env.state_dict()),
            "obs": torch.as_tensor(self.obs),
            "info": kept({k: v for k, v in self.info.items() if k == "action_mask"}),
        }
        save_checkpoint(state, self.log.checkpoint)

    def resume(self) -> None:
        """Load the folder's checkpoint, so that :meth:`train` goes on from it bit for bit."""
        if self.log is None:
            raise ValueError("nothing to resume: the trainer has no folder")
        with checkpoint(self.log.checkpoint) as state:
            self.steps, self.seconds = state["steps"], state["seconds"]
            self.curve = Curve(**state["curve"])
            self.diagnostics = Curve(**state["diagnostics"])
            self.updates = state["updates"]
            self.metrics = to_arrays(state["metrics"])
            torch.set_rng_state(state["torch"])
            self.learner.load_state_dict(state["learner"])
            self.env.load_state_dict(to_arrays(state["env"]))
            self.obs, self.info = state["obs"].numpy(), to_arrays(state["info"])
            self.log.cut(state["log_bytes"])

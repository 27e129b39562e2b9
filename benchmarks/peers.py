"""Peers that install as packages, each trained until it reaches the threshold.

``python -m benchmarks.peers NAME --seed 0`` trains one on CartPole-v1 and ends with a line of JSON;
:mod:`benchmarks.time_to_threshold` runs it and holds the clock. The policy is judged at every 4,096
steps, which is not counted as time of the peer, and costs it nothing but the wait for the next.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.judge import THRESHOLD, Judge

JUDGE_EVERY = 4_096  # environment steps
ROUNDS = 3  # how often the given number of steps is trained before a peer gives up

# hyperparams/ppo.yml of DLR-RM/rl-baselines3-zoo at 22e3ff2; lin_X falls from X to 0
ZOO = {
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    "ent_coef": 0.0,
    "learning_rate": "lin_0.001",
    "clip_range": "lin_0.2",
}


@dataclass(frozen=True)
class Peer:
    """One peer at one setting.

    Parameters
    ----------
    name : str
        As the table shows it.
    package : str
        The module that has ``PPO``.
    num_envs, timesteps : int
    options : dict
        Arguments of ``PPO``; all others keep their defaults.
    threads : int or None
        Of torch; ``None`` leaves its choice, as the library does.
    """

    name: str
    package: str
    num_envs: int
    timesteps: int
    options: dict[str, Any]
    threads: int | None = None

    @property
    def settings(self) -> str:
        """The settings in words."""
        listed = ", ".join(f"{k} {v}" for k, v in self.options.items())
        threads = "" if self.threads is None else f", torch on {self.threads} thread"
        return f"{self.num_envs} environments, {listed}; {self.timesteps:,} steps{threads}"


PEERS = {
    "sb3-zoo": Peer("stable-baselines3, RL-Zoo", "stable_baselines3", 8, 100_000, ZOO),
    "sb3-zoo-thread": Peer(
        "stable-baselines3, RL-Zoo, one thread", "stable_baselines3", 8, 100_000, ZOO, threads=1
    ),
    "sb3-64": Peer(
        "stable-baselines3, 64 environments",
        "stable_baselines3",
        64,
        500_000,
        {"n_steps": 32, "batch_size": 512, "n_epochs": 4, "learning_rate": 1e-3},
        threads=1,
    ),
    "sbx-zoo": Peer("sbx, RL-Zoo", "sbx", 8, 100_000, ZOO),
}


def schedule(value: Any) -> Any:
    """Return ``lin_X`` as the function of the remaining progress that RL-Zoo means by it."""
    if not isinstance(value, str):
        return value
    initial = float(value.removeprefix("lin_"))
    return lambda remaining: remaining * initial


def train(peer: Peer, seed: int) -> dict[str, Any]:
    """Train until the policy, judged now and then, reaches the threshold, or the steps are spent.

    Returns
    -------
    dict
        ``reached``, ``return``, ``steps`` of the environment, ``not_counted`` seconds of judging.
    """
    ppo = importlib.import_module(peer.package).PPO
    from stable_baselines3.common.env_util import make_vec_env

    if peer.threads is not None:
        import torch

        torch.set_num_threads(peer.threads)
    env = make_vec_env("CartPole-v1", n_envs=peer.num_envs, seed=seed)
    options = {name: schedule(value) for name, value in peer.options.items()}
    model = ppo("MlpPolicy", env, seed=seed, device="cpu", **options)
    judge = Judge()

    def judged() -> float:
        return judge(lambda obs: model.predict(obs, deterministic=False)[0])

    score, steps = 0.0, 0
    for _ in range(ROUNDS):
        callback = stop_when(judged)
        model.learn(peer.timesteps, callback=callback)
        score, steps = callback.score, steps + callback.steps
        if score >= THRESHOLD:
            break
    return {
        "reached": score >= THRESHOLD,
        "return": score,
        "steps": steps,
        "not_counted": judge.seconds,
    }


def stop_when(judged: Callable[[], float]) -> Any:
    """Return a callback that stops training once ``judged()`` reaches the threshold.

    It asks between two rollouts, after the update, so that no policy is judged half-way.
    """
    from stable_baselines3.common.callbacks import BaseCallback

    class Stop(BaseCallback):
        score, steps = 0.0, 0
        due = JUDGE_EVERY

        def _on_rollout_start(self) -> None:
            if self.num_timesteps >= self.due:
                self._judge()
                self.due += JUDGE_EVERY

        def _on_step(self) -> bool:
            return self.score < THRESHOLD

        def _on_training_end(self) -> None:
            if self.score < THRESHOLD:
                self._judge()

        def _judge(self) -> None:
            self.score, self.steps = judged(), self.num_timesteps

    return Stop()


def main() -> None:
    """Train one peer and print how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()
    print(json.dumps(train(PEERS[own.peer], own.seed)), flush=True)


if __name__ == "__main__":
    main()

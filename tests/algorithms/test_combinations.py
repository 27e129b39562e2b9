"""Every algorithm trains with every encoder, from the name of the world to the last evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from algorithms.cases import ENCODERS

from marl_lib import cli
from marl_lib.off_policy import OffPolicy
from marl_lib.runs import ALGORITHMS, load_learner, make_trainer, run_config

PAIRS = {"kind": "pairs", "hidden": (8,), "pair_hidden": (8,)}
ALONE = {"ppo": "CartPole-v1", "attention_ppo": "CartPole-v1", "sac": "gymnasium:Pendulum-v1"}
TINY: dict[str, Any] = {
    "num_envs": 4, "eval_every": 10**6, "eval_episodes": 1, "final_episodes": 1, "timesteps": 48,
    "replicates": 2,
}  # fmt: skip


def settings(algorithm: str, encoder: str) -> dict[str, Any]:
    """Return those of a run that makes a few updates."""
    small: dict[str, Any] = {"rollout": 6, "epochs": 1, "batch_size": 12}
    if issubclass(ALGORITHMS[algorithm][0], OffPolicy):
        small = {
            "batch_size": 4, "buffer_size": 200, "learning_starts": 8, "train_every": 16,
            "sequence_length": 4, "burn_in": 1,
        }  # fmt: skip
    env = ALONE.get(algorithm, "TrafficJunction")
    given = {
        "env": env,
        "algorithm": algorithm,
        algorithm: small | {"encoder": {**ENCODERS, "pairs": PAIRS}[encoder]},
    }
    return {**TINY, **given, **({"replicates": 1} if ":" in env else {})}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("encoder", [*ENCODERS, "pairs"])
def test_every_algorithm_trains_with_every_encoder(algorithm: str, encoder: str) -> None:
    trainer = make_trainer(run_config(settings(algorithm, encoder)), progress=False)
    learner, result = trainer.learner, trainer.train()
    assert learner.updates >= 2 and learner.steps == 48
    assert learner.config.encoder.kind == encoder
    assert learner.config.encoder.remembers == bool(learner.memory_size)
    assert result.final["episode_return"].shape == (len(learner.seeds), 1)
    for figures in (result.final, result.diagnostics.values):
        assert all(np.isfinite(x).all() for x in figures.values())


@pytest.mark.parametrize(
    ("algorithm", "encoder"), [("qmix", "gru"), ("ippo", "lstm"), ("sac", "attention")]
)
def test_an_encoder_by_its_name_on_the_command_line(
    algorithm: str, encoder: str, tmp_path: Path
) -> None:
    """``marl train --env TrafficJunction --algorithm qmix --qmix.encoder gru``, and read again."""
    given = settings(algorithm, encoder)
    flags = {name: given[name] for name in ("env", "algorithm", *TINY)}
    flags |= {f"{algorithm}.{k}": v for k, v in given[algorithm].items() if k != "encoder"}
    flags |= {f"{algorithm}.encoder": encoder, "folder": tmp_path / "run"}
    args = [word for k, v in flags.items() for word in (f"--{k}".replace("_", "-"), str(v))]
    cli.main(["train", *args])
    _, learner = load_learner(tmp_path / "run")
    assert learner.config.encoder == type(learner.config.encoder).kinds()[encoder]()
    assert learner.updates >= 2

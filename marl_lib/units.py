"""One unit of an experiment's work: some seeds of a setting, trained, judged, put into records."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from marl_lib.config import ConfigError, to_mapping
from marl_lib.envs.gridworld import BatchedGridWorld
from marl_lib.log import Curve
from marl_lib.plans import ExperimentConfig
from marl_lib.rollout import play
from marl_lib.runs import RunConfig, make_trainer, run_config, world_maker
from marl_lib.training import EVALUATION_SEED, Trainer, TrainingDiverged, TrainingResult, evaluate


def run_setting(
    label: str, config: RunConfig, experiment: ExperimentConfig
) -> list[dict[str, Any]]:
    """Train one setting with the seeds of ``config``; return one record a seed."""
    trainer, result = _train(config, experiment)
    tests = {name: judge(trainer, config, world) for name, world in experiment.tests.items()}
    seen = _observations(trainer, config) if experiment.importance else None
    return [
        {
            **_record(label, config, experiment, i),
            **_outcome(trainer, result, config, i),
            "curve": _of_replicate(result.curve, i),
            "diagnostics": _of_replicate(result.diagnostics, i),
            "tests": {
                name: {"episode_return": found["episode_return"][i].tolist()}
                for name, found in tests.items()
            },
            "importance": {} if seen is None else _importance(trainer.learner, i, seen[i]),
        }
        for i in range(config.replicates)
    ]


def try_setting(
    label: str, config: RunConfig, experiment: ExperimentConfig
) -> list[dict[str, Any]]:
    """Train one setting as :func:`run_setting` does, and record its last evaluation alone.

    A setting whose training diverges is worth nothing and no reason to stop: so say its records.
    """
    replicates = range(config.replicates)
    try:
        trainer, result = _train(config, experiment)
    except TrainingDiverged as error:
        said = {"evaluation": {}, "diverged": str(error)}
        return [_record(label, config, experiment, i) | said for i in replicates]
    return [
        _record(label, config, experiment, i) | _outcome(trainer, result, config, i)
        for i in replicates
    ]


def _train(config: RunConfig, experiment: ExperimentConfig) -> tuple[Trainer, TrainingResult]:
    trainer = make_trainer(config, progress=sys.stderr.isatty())
    return trainer, trainer.train(experiment.evaluation_seed)


def _record(
    label: str, config: RunConfig, experiment: ExperimentConfig, index: int
) -> dict[str, Any]:
    """Return what is known of replicate ``index`` before it is trained."""
    return {
        "algorithm": label,
        "env": config.env,
        "seed": config.seeds[index],
        "config": to_mapping(config),
        "evaluation_seed": experiment.evaluation_seed,
        "device": config.device,
    }


def _outcome(
    trainer: Trainer, result: TrainingResult, config: RunConfig, index: int
) -> dict[str, Any]:
    """Return what replicate ``index`` came to, and what it took."""
    return {
        "evaluation": {k: v[index].tolist() for k, v in result.final.items()},
        **_reward(trainer),
        "parameters": trainer.learner.parameters,
        "environment_steps": result.steps,
        "wall_clock_seconds": round(result.seconds, 2),
        "replicates_in_process": config.replicates,
    }


def _reward(trainer: Trainer) -> dict[str, str]:
    """Return whether agents of a team learn from their own rewards or their sum."""
    if trainer.env.n_agents == 1:
        return {}
    return {"reward": "team" if trainer.learner.team_reward else "own"}


def _of_replicate(curve: Curve, index: int) -> dict[str, Any]:
    values = {name: curve.array(name)[index].tolist() for name in curve.values}
    return {"steps": curve.steps, **values}


def judge(trainer: Trainer, config: RunConfig, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the figures (R, episodes) of a trained policy on its world with other options."""
    other = run_config(to_mapping(config), {"env_options": options})
    policy, n = trainer.learner.policy(), config.replicates
    return evaluate(world_maker(other), policy, n, config.final_episodes)


def _observations(trainer: Trainer, config: RunConfig, steps: int = 64) -> np.ndarray:
    """Return observations (R, n, D) that the first agents meet under the trained policies."""
    env = world_maker(config)(16 * config.replicates)
    obs, info = env.reset(seed=[EVALUATION_SEED] * config.replicates)
    policy, seen = trainer.learner.policy(), []
    for _ in range(steps):
        seen.append(obs[:, 0].reshape(config.replicates, 16, -1))
        obs, _, _, _, info = env.step(policy(obs, info))
    return np.concatenate(seen, axis=1)


def _importance(learner: Any, index: int, obs: np.ndarray) -> dict[str, list[float]]:
    """Return how much replicate ``index`` rests on each feature, by every measure there is."""
    from marl_lib.interpret import agent_of, feature_importance

    return feature_importance(agent_of(learner, index), learner.seen_by(index, obs))


def run_reference(name: str, config: RunConfig, seed: int) -> dict[str, Any]:
    """Judge a policy that does not learn on the worlds the learners are judged on."""
    from marl_lib.planning import Planner, random_actions  # brings scipy, which is slow to load

    world = world_maker(config)(config.final_episodes)
    if name == "planner" and isinstance(world, BatchedGridWorld):
        policy: Any = Planner(world)
    elif name == "planner":
        policy = lambda obs, info: world.scripted()  # noqa: E731
    else:
        policy = random_actions(world)
    try:
        episodes = play(world, policy, seed)
    except NotImplementedError as error:
        raise ConfigError(f"there is no planner for {config.env}: {error}") from error
    figures = {
        "episode_return": episodes.returns,
        "episode_length": episodes.lengths,
        **episodes.metrics,
    }
    return {
        "algorithm": name,
        "env": config.env,
        "seed": 0,
        "config": to_mapping(config),
        "evaluation": {k: v.tolist() for k, v in figures.items()},
        "evaluation_seed": seed,
        "device": "cpu",
    }

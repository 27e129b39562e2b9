"""Experiments: files with provenance, the same figures however the work is spread."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from dask.distributed import Client, LocalCluster

from marl_lib import experiments, runs, tuning
from marl_lib.config import ConfigError
from marl_lib.experiments import run_experiment
from marl_lib.planning import Planner, random_actions
from marl_lib.plans import ExperimentConfig, find_experiment, shipped_experiments
from marl_lib.records import (
    curves,
    final_scores,
    load_results,
    load_tuning,
    recorded_experiments,
    write_record,
)
from marl_lib.rollout import play
from marl_lib.training import EVALUATION_SEED, TrainingDiverged, evaluate

BASE: dict[str, Any] = {
    "num_envs": 4, "timesteps": 400, "eval_every": 200, "eval_episodes": 20, "final_episodes": 4,
    "env_options": {"grid_size": [3, 3], "n_agents": 2, "n_targets": 2, "max_steps": 10},
    "dqn": {
        "encoder": {"hidden": [8]}, "batch_size": 8, "buffer_size": 400, "learning_starts": 40,
        "train_every": 4, "target_every": 20, "learning_rate": 0.01,
    },
}  # fmt: skip
PLAN: dict[str, Any] = {
    "description": "Two settings.",
    "seeds": 3,
    "settings": {"plain": None, "no-double": {"dqn": {"double": False, "gamma": 0.5}}},
    "references": ["planner", "random"],
}
# What the book's pages rely on.
KEYS = {
    "experiment", "algorithm", "env", "seed", "config", "evaluation", "commit", "versions",
    "device", "machine", "command", "date", "evaluation_seed",
}  # fmt: skip
LEARNED = {
    "curve", "diagnostics", "tests", "importance", "reward", "parameters", "environment_steps",
    "wall_clock_seconds", "replicates_in_process",
}  # fmt: skip


def write_plan(folder: Path, base: dict | None = None, **changes: Any) -> Path:
    """Write an experiment and its configuration (JSON is YAML); return the experiment's path."""
    (folder / "base.yaml").write_text(json.dumps(BASE | (base or {})))
    path = folder / "two.yaml"
    path.write_text(json.dumps(PLAN | {"config": str(folder / "base.yaml")} | changes))
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an experiment's path and its results, all seeds in this process; not to be changed."""
    folder = tmp_path_factory.mktemp("experiment")
    path = write_plan(folder)
    run_experiment(path, folder / "results", command="marl experiment two")
    return path, folder / "results"


def learned(results: Path) -> dict[str, dict[str, Any]]:
    """Return what the runs that learn came to, without what each machine does its own way."""
    return {
        path.name: {k: record[k] for k in ("algorithm", "seed", "curve", "evaluation")}
        for path in sorted(results.glob("two/*.json"))
        if "curve" in (record := json.loads(path.read_text()))
    }


def assert_same_figures(a: Path, b: Path) -> None:
    """Two folders hold the same curves and final episodes, to rounding."""
    one, other = learned(a), learned(b)
    assert one.keys() == other.keys() and len(one) == 6
    assert len({tuple(record["curve"]["episode_return"]) for record in one.values()}) == 6
    for name, record in one.items():
        for part in ("curve", "evaluation"):
            assert record[part].keys() == other[name][part].keys()
            for figure, values in record[part].items():
                np.testing.assert_allclose(values, other[name][part][figure], atol=1e-4)


# Files --------------------------------------------------------------------------------------------


def test_every_run_has_a_file_with_all_that_made_it(recorded: tuple[Path, Path]) -> None:
    _, results = recorded
    labels = [f"{label}-{seed}.json" for label in ("plain", "no-double") for seed in range(3)]
    found = {p.name: json.loads(p.read_text()) for p in (results / "two").iterdir()}
    assert set(found) == {*labels, "planner-0.json", "random-0.json"}
    for name, record in found.items():
        assert set(record) == (KEYS | LEARNED if name in labels else KEYS)
        assert record["experiment"] == "two" and record["env"] == "GridWorld"
        assert f"{record['algorithm']}-{record['seed']}.json" == name
        assert record["command"] == "marl experiment two" and record["device"] == "cpu"
        assert set(record["versions"]) > {"python", "torch", "numpy"}
        figures = {"episode_return", "episode_length", "targets_collected"}
        assert set(record["evaluation"]) == figures
        assert all(len(values) == 4 for values in record["evaluation"].values())
        if name in labels:
            assert record["curve"]["steps"] == [0, 200, 400]
            assert set(record["curve"]) == figures | {"steps"}
            assert record["replicates_in_process"] == 3 and record["wall_clock_seconds"] > 0
            assert record["environment_steps"] == 400 and record["reward"] == "own"
    kept = found["no-double-2.json"]["config"]
    assert (kept["dqn"]["double"], kept["dqn"]["gamma"]) == (False, 0.5)
    assert found["plain-2.json"]["config"]["dqn"]["double"] is True
    assert kept["env_options"]["max_steps"] == 10 and kept["dqn"]["train_every"] > 0  # all of it


def test_a_record_is_the_run_of_its_seed(recorded: tuple[Path, Path]) -> None:
    _, results = recorded
    record = json.loads((results / "two" / "no-double-2.json").read_text())
    config = runs.run_config(record["config"], {"seed": record["seed"], "replicates": 1})
    result = runs.make_trainer(config, progress=False).train()
    values = result.curve.array()[0]
    np.testing.assert_allclose(record["curve"]["episode_return"], values, atol=1e-4)
    final = result.final["episode_return"][0]
    np.testing.assert_allclose(record["evaluation"]["episode_return"], final, atol=1e-4)
    other = json.loads((results / "two" / "no-double-1.json").read_text())
    assert other["curve"]["episode_return"] != record["curve"]["episode_return"]


def test_references_are_judged_on_the_learners_worlds(recorded: tuple[Path, Path]) -> None:
    _, results = recorded
    records = load_results("two", results)
    planner, random = (records[name][0]["evaluation"] for name in ("planner", "random"))
    world = runs.world_maker(runs.run_config(BASE))(4)
    episodes = play(world, Planner(world), EVALUATION_SEED)
    np.testing.assert_allclose(planner["episode_return"], episodes.returns, rtol=1e-5)
    assert planner["targets_collected"] == [1.0] * 4
    assert np.mean(random["episode_return"]) < np.mean(planner["episode_return"])


def test_results_come_back_by_label_in_the_order_of_their_seeds(tmp_path: Path) -> None:
    for seed in (10, 2, 1):
        for label in ("b", "a"):
            record = {
                "algorithm": label, "seed": seed,
                "curve": {"steps": [0, 5], "episode_return": [0.0, float(seed)]},
                "evaluation": {"episode_return": [seed, seed + 1.0]},
            }  # fmt: skip
            write_record(tmp_path / "x", f"{label}-{seed}", record)
    found = load_results("x", tmp_path)
    assert list(found) == ["a", "b"]
    assert [r["seed"] for r in found["a"]] == [1, 2, 10]
    steps, values = curves(found["a"])
    assert steps.tolist() == [0, 5] and values.tolist() == [[0, 1], [0, 2], [0, 10]]
    assert final_scores(found["b"]).tolist() == [1.5, 2.5, 10.5]
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(ConfigError, match=r"experiment 'y' is not known.*choices: x"):
        load_results("y", tmp_path)


def test_results_are_not_replaced_by_accident(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    plan, results = recorded
    before = {p: p.read_bytes() for p in results.rglob("*.json")}
    with pytest.raises(ConfigError, match=rf"{results / 'two'} already holds results.*--overwrite"):
        run_experiment(plan, results)
    assert {p: p.read_bytes() for p in results.rglob("*.json")} == before


def test_replaced_results_are_replaced_whole(tmp_path: Path) -> None:
    """Runs of two configurations in one folder would be drawn as one curve."""
    plan = write_plan(tmp_path, settings={"plain": {}}, references=["random"], seeds=2)
    run_experiment(plan, tmp_path)
    (tmp_path / "two" / "notes.txt").write_text("mine")
    paths = run_experiment(plan, tmp_path, overwrite=True, seeds=1, overrides={"timesteps": 100})
    assert {p.name for p in paths} == {"plain-0.json", "random-0.json"}
    left = {p.name for p in (tmp_path / "two").iterdir()}
    assert left == {"plain-0.json", "random-0.json", "notes.txt"}
    assert load_results("two", tmp_path)["plain"][0]["config"]["timesteps"] == 100


def test_an_interrupted_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written with the same configuration stays; the missing and the changed are made."""
    plan = write_plan(tmp_path, settings={"plain": {}}, references=[], seeds=3)
    first, gone, other = sorted(run_experiment(plan, tmp_path, per_process=1))
    before = {p: p.read_text() for p in (first, gone, other)}
    gone.unlink()
    other.write_text(before[other].replace('"timesteps": ', '"timesteps": 9'))
    first.write_text(before[first].replace('"command": ', '"kept": true, "command": '))
    made: list[tuple[int, ...]] = []
    run = experiments.run_setting
    monkeypatch.setattr(
        experiments, "run_setting", lambda *u: (made.append(u[1].seeds), run(*u))[1]
    )
    paths = run_experiment(plan, tmp_path, per_process=1, resume=True)
    assert sorted(map(tuple, made)) == [(1,), (2,)]
    assert sorted(paths) == [first, gone, other]
    assert json.loads(first.read_text())["kept"] is True
    for path in (gone, other):
        was, now = json.loads(before[path]), json.loads(path.read_text())
        assert {k: was[k] for k in ("config", "curve", "evaluation")} == {
            k: now[k] for k in ("config", "curve", "evaluation")
        }


def test_other_seeds_are_judged_on_other_worlds(tmp_path: Path) -> None:
    """The second look at a setting: nothing it was chosen by comes back."""
    other = EVALUATION_SEED + 7
    again = {"first_seed": 5, "evaluation_seed": other}
    plan = write_plan(tmp_path, settings={"plain": {}}, references=["random"], seeds=2, **again)
    run_experiment(plan, tmp_path, per_process=1)
    (random,), (first, second) = map(load_results("two", tmp_path).get, ("random", "plain"))
    assert (first["seed"], second["seed"]) == (5, 6)
    config = runs.run_config(second["config"])
    trainer = runs.make_trainer(config, progress=False)
    result = trainer.train()
    judged = evaluate(trainer.make_env, trainer.learner.policy(), 1, config.final_episodes, other)
    found = second["evaluation"]["episode_return"]
    np.testing.assert_allclose(found, judged["episode_return"][0], atol=1e-4)
    assert not np.allclose(found, result.final["episode_return"][0], atol=1e-2)
    world = runs.world_maker(config)(config.final_episodes)
    np.testing.assert_allclose(
        random["evaluation"]["episode_return"],
        play(world, random_actions(world), other).returns,
        atol=1e-4,
    )
    assert {r["evaluation_seed"] for r in (random, first, second)} == {other}
    with pytest.raises(ConfigError, match=r"evaluation_seed must be at least 1000003.*got 3"):
        ExperimentConfig(settings={"a": {}}, evaluation_seed=3)


@pytest.mark.parametrize("name", shipped_experiments())
def test_what_ships_can_be_run(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The whole plan, with a stand-in for the training itself."""
    asked: list[tuple[str, runs.RunConfig]] = []

    def tried(label: str, config: Any, plan: Any) -> list[dict[str, Any]]:
        scores = {"evaluation": {"episode_return": [1.0]}}
        return [{"algorithm": label, "seed": seed, **scores} for seed in config.seeds]

    monkeypatch.setattr(experiments, "run_setting", lambda *unit: asked.append(unit) or [])
    monkeypatch.setattr(experiments, "try_setting", tried)
    _, experiment = find_experiment(name)
    paths = run_experiment(name, tmp_path, per_process=4)
    sizes = [min(4, experiment.seeds - first) for first in range(0, experiment.seeds, 4)]
    assert [c.replicates for _, c, _ in asked] == sizes * len(experiment.all_settings())
    begin = experiment.first_seed
    seeds = list(range(begin, begin + experiment.seeds, 4))
    assert [c.seed for _, c, _ in asked][: len(sizes)] == seeds
    assert len(paths) == len(experiment.references)
    assert all(c.timesteps >= 1_000 for _, c, _ in asked)


# Sweeps, other worlds, importance -----------------------------------------------------------------

POLE = {
    "env": "CartPole-v1", "num_envs": 8, "timesteps": 256, "eval_every": 256, "eval_episodes": 3,
    "final_episodes": 4,
}  # fmt: skip
PPO = {"rollout": 16, "batch_size": 64, "epochs": 1, "encoder": {"hidden": [8]}}


def test_settings_may_name_worlds_and_algorithms_of_their_own(tmp_path: Path) -> None:
    small = {
        "encoder": {"d_model": 8, "n_heads": 2, "hidden": [8]}, "rollout": 16, "batch_size": 64
    }  # fmt: skip
    plan = {
        "seeds": 2,
        "per_process": 1,
        "importance": True,
        "references": ["random"],
        "settings": {
            "plain": {**POLE, "algorithm": "ppo", "ppo": PPO},
            "attends": {**POLE, "algorithm": "attention_ppo", "attention_ppo": small},
        },
        "tests": {"strong push": {"physics": {"force_mag": 60.0}}},
    }
    (tmp_path / "mixed.yaml").write_text(json.dumps(plan))
    run_experiment(tmp_path / "mixed.yaml", tmp_path)
    found = load_results("mixed", tmp_path)
    assert {k: len(v) for k, v in found.items()} == {"plain": 2, "attends": 2, "random": 1}
    assert found["random"][0]["env"] == "CartPole-v1"
    record = found["plain"][1]
    assert record["config"]["algorithm"] == "ppo" and record["replicates_in_process"] == 1
    assert set(record["diagnostics"]) >= {"steps", "entropy", "approx_kl", "explained_variance"}
    assert record["diagnostics"]["steps"] == record["curve"]["steps"][1:]
    assert len(record["importance"]["permutation"]) == 4
    assert "attention" not in record["importance"]
    assert sum(found["attends"][0]["importance"]["attention"]) == pytest.approx(1, abs=1e-4)
    config = runs.run_config(record["config"], {"replicates": 1, "seed": 1})
    trainer = runs.make_trainer(config, progress=False)
    trainer.train()
    other = runs.run_config(record["config"], {"env_options": {"physics": {"force_mag": 60.0}}})
    again = evaluate(runs.world_maker(other), trainer.learner.policy(), 1, 4)["episode_return"][0]
    assert record["tests"]["strong push"]["episode_return"] == again.tolist()


def test_a_sweep_changes_one_setting_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps({**POLE, "algorithm": "ppo", "ppo": PPO}))
    plan = {
        "config": str(tmp_path / "base.yaml"),
        "seeds": 1,
        "sweep": {"ppo.epochs": [2, 3], "ppo.gamma": [0.5], "num_envs": [16]},
    }
    (tmp_path / "swept.yaml").write_text(json.dumps(plan))
    run_experiment(tmp_path / "swept.yaml", tmp_path)
    found = load_results("swept", tmp_path)
    assert set(found) == {"epochs=2", "epochs=3", "gamma=0.5", "num_envs=16"}
    config = found["epochs=3"][0]["config"]
    assert (config["ppo"]["epochs"], config["ppo"]["gamma"], config["num_envs"]) == (3, 0.99, 8)
    assert found["gamma=0.5"][0]["config"]["ppo"]["epochs"] == 1


def test_the_scripted_agent_of_colour_match_is_its_planner(tmp_path: Path) -> None:
    plan = {"settings": {}, "config": "colourmatch-ppo", "references": ["planner", "random"]}
    (tmp_path / "colours.yaml").write_text(json.dumps(plan))
    run_experiment(tmp_path / "colours.yaml", tmp_path)
    found = load_results("colours", tmp_path)
    share = {k: np.mean(v[0]["evaluation"]["found"]) for k, v in found.items()}
    assert share["planner"] == 1 and share["random"] < 0.4


def test_what_was_finished_is_kept_when_a_later_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = experiments.run_setting

    def fails(label: str, config: Any, experiment: Any) -> list[dict[str, Any]]:
        if config.seed == 1:
            raise TrainingDiverged("policy_loss of seed 1 is not finite at step 64")
        return real(label, config, experiment)

    monkeypatch.setattr(experiments, "run_setting", fails)
    plan = {"seeds": 2, "per_process": 1, "settings": {"a": {**POLE, "algorithm": "ppo"}}}
    (tmp_path / "one.yaml").write_text(json.dumps(plan))
    with pytest.raises(TrainingDiverged):
        run_experiment(tmp_path / "one.yaml", tmp_path)
    assert [p.name for p in (tmp_path / "one").glob("*.json")] == ["a-0.json"]


def test_benchmarks_are_no_experiment(tmp_path: Path) -> None:
    for name in ("benchmarks", "one"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a-0.json").write_text("{}")
    assert recorded_experiments(tmp_path) == ["one"]


# Tuning -------------------------------------------------------------------------------------------

TUNED: dict[str, Any] = {
    "seeds": 2,
    "first_seed": 40,
    "evaluation_seed": EVALUATION_SEED + 7,
    "per_process": 1,
    "references": ["random"],
    "settings": {"plain": {}, "short-sighted": {"dqn": {"gamma": 0.5}}},
    "tuning": {"learning_rate": [1e-3, 4e-3, 1.6e-2], "seeds": 2, "first_seed": 7, "rounds": 2},
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a tuned experiment's path and its results, not to be changed."""
    folder = tmp_path_factory.mktemp("tuned")
    path = write_plan(folder, **TUNED)
    run_experiment(path, folder / "results")
    return path, folder / "results"


def test_the_best_setting_of_each_method_runs_again(tuned: tuple[Path, Path]) -> None:
    _, results = tuned
    tried, found = load_tuning("two", results), load_results("two", results)
    assert set(found) == {"plain", "short-sighted", "random"}
    assert set(tried) == {"plain", "short-sighted"}
    choices = {label: tuning.choose(tuning.trials(of)) for label, of in tried.items()}
    counts = {len(choice.trials) for choice in choices.values()}
    assert len(counts) == 1 and counts <= {3, 5}
    if any(choice.edge for choice in choices.values()):
        assert counts == {5}
    for label, choice in choices.items():
        assert choice.best.score == max(t.score for t in choice.trials)
        assert [r["seed"] for r in found[label]] == [40, 41]
        for record in found[label]:
            settings = record["config"]["dqn"]
            assert settings["learning_rate"] == choice.best.values["learning_rate"]
            assert settings["gamma"] == (0.5 if label == "short-sighted" else 0.95)
            assert record["evaluation_seed"] == EVALUATION_SEED + 7
            assert set(record) == KEYS | LEARNED


def test_a_run_of_the_tuning_stage_keeps_its_last_evaluation(tuned: tuple[Path, Path]) -> None:
    _, results = tuned
    names = {p.name for p in (results / "two" / "tuning").iterdir()}
    assert {"plain-1-7.json", "plain-3-8.json", "short-sighted-1-7.json"} <= names
    record = json.loads((results / "two" / "tuning" / "short-sighted-2-8.json").read_text())
    heavy = {"curve", "diagnostics", "tests", "importance"}
    assert set(record) == KEYS | LEARNED - heavy | {"setting", "values"}
    assert (record["algorithm"], record["setting"]) == ("short-sighted", 2)
    assert record["values"] == {"learning_rate": 4e-3}
    assert record["evaluation_seed"] == 2_000_003
    config = runs.run_config(record["config"])
    assert config.seeds == [8]
    again = runs.make_trainer(config, progress=False).train(2_000_003)
    values = again.final["episode_return"][0]
    np.testing.assert_allclose(record["evaluation"]["episode_return"], values, atol=1e-4)


class Broken(Exception):
    """Stands for whatever breaks an experiment off."""


def test_a_tuned_experiment_is_resumed_run_by_run(
    tuned: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off in the first round, later in the tuning, and in the result; nothing is lost."""
    plan, whole = tuned
    made: list[tuple[str, int]] = []
    left = 0

    def breaks(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(label: str, config: Any, experiment: Any) -> list[dict[str, Any]]:
            nonlocal left
            if left == 0:
                raise Broken
            left -= 1
            made.append((label, config.seed))
            return list(work(label, config, experiment))

        return run

    for name in ("run_setting", "try_setting"):
        monkeypatch.setattr(experiments, name, breaks(getattr(experiments, name)))
    files = len(list(whole.rglob("*/tuning/*.json")))
    for parts in (5, files - 6, 2):
        left = parts
        with pytest.raises(Broken):
            run_experiment(plan, tmp_path, resume=True)
    left = -1
    run_experiment(plan, tmp_path, resume=True)
    names = sorted(p.relative_to(whole).as_posix() for p in whole.rglob("*.json"))
    assert names == sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json"))
    assert len(made) == len(set(made)) == len(names) - 1  # each once; one file is random play
    for name in names:
        one, other = (json.loads((folder / name).read_text()) for folder in (whole, tmp_path))
        for part in ("config", "evaluation", "curve", "values", "setting"):
            assert one.get(part) == other.get(part)


def test_tuned_results_are_not_replaced_by_accident_and_then_whole(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, **TUNED | {"references": []})
    stale = tmp_path / "two" / "tuning" / "gone-1-7.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    with pytest.raises(ConfigError, match="already holds results"):
        run_experiment(plan, tmp_path)
    short = {"timesteps": 40, "eval_every": 40, "eval_episodes": 1, "final_episodes": 2}
    paths = run_experiment(plan, tmp_path, overwrite=True, seeds=1, overrides=short)
    assert {p.name for p in paths} == {"plain-40.json", "short-sighted-40.json"}
    assert not stale.exists()
    run_experiment(write_plan(tmp_path), tmp_path, overwrite=True, seeds=1, overrides=short)
    assert not list((tmp_path / "two" / "tuning").iterdir())  # no longer tuned


def test_a_tuned_experiment_may_have_several_processes(
    tuned: tuple[Path, Path], tmp_path: Path
) -> None:
    plan, whole = tuned
    run_experiment(plan, tmp_path, n_jobs=2, per_process=2)
    assert {p.name for p in whole.rglob("*.json")} == {p.name for p in tmp_path.rglob("*.json")}


def test_a_setting_that_diverges_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops the experiment only if there is no other."""
    real, limit = runs.make_trainer, 2e-3

    def fragile(config: Any, **options: Any) -> Any:
        trainer = real(config, **options)
        if config.dqn.learning_rate > limit:
            trainer._check_finite({"loss": np.array([np.nan])})
        return trainer

    monkeypatch.setattr("marl_lib.units.make_trainer", fragile)
    plan = write_plan(tmp_path, **TUNED)
    run_experiment(plan, tmp_path)
    for records in load_tuning("two", tmp_path).values():
        choice = tuning.choose(tuning.trials(records))
        assert [t.score for t in choice.trials[1:3]] == [-np.inf] * 2
        assert len(choice.trials) == 5  # lower ones, since only the lowest of the grid was any good
        assert all("loss of seed" in r["diverged"] for r in records if not r["evaluation"])
    limit = 0.0
    with pytest.raises(TrainingDiverged, match="every setting tried of plain diverged"):
        run_experiment(plan, tmp_path, overwrite=True)


def test_all_learning_rates_of_a_method_are_tuned_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def tried(label: str, config: Any, plan: Any) -> list[dict[str, Any]]:
        asked.append(config)
        scores = {"evaluation": {"episode_return": [1.0]}}
        return [{"algorithm": label, "seed": seed, **scores} for seed in config.seeds]

    monkeypatch.setattr(experiments, "try_setting", tried)
    monkeypatch.setattr(experiments, "run_setting", lambda *unit: asked.append(unit[1]) or [])
    grid = {"learning_rate": [1e-3, 1e-2, 1e-1], "also": {"team_reward": [False, True]}}
    plan = {
        "settings": {"maddpg": {"env": "CooperativeNavigation", "algorithm": "maddpg"}},
        "tuning": grid,
        "seeds": 1,
    }
    (tmp_path / "one.yaml").write_text(json.dumps(plan))
    run_experiment(tmp_path / "one.yaml", tmp_path)
    found = [(c.maddpg.learning_rate, c.maddpg.critic_learning_rate, c.maddpg.team_reward)
             for c in asked]  # fmt: skip
    assert found == [(r, r, t) for r in (1e-3, 1e-2, 1e-1) for t in (False, True)] + [
        (1e-2, 1e-2, False)
    ]


# What is refused, before anything runs ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"a": {"dqn": {"gama": 1}}}}, "configuration key in dqn 'gama' is not known"),
        ({"settings": {"a": {"timesteps": "x"}}}, "timesteps must be of type int, got 'x'"),
        ({"settings": {"a": "fast"}}, "settings.a must be"),
        ({"settings": {"a/b": {}}}, "a label of settings must be of letters"),
        ({"settings": {"random": {}}}, "settings must be unlike the references"),
        ({"settings": {}, "references": []}, "settings must be at least one, or a reference"),
        ({"references": ["oracle"]}, "references[0] 'oracle' is not known (choices: planner"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"setting": {}}, "configuration key 'setting' is not known; did you mean 'settings'?"),
        ({"config": "nosuch"}, "configuration 'nosuch' is not known"),
        ({"tuning": {"rates": [1]}}, "configuration key in tuning 'rates' is not known"),
        ({"tuning": {"also": {"gama": [1]}}}, "configuration key in dqn 'gama' is not known"),
        ({"tuning": {"first_seed": 1}}, "tuning.first_seed must be such that none of 3"),
        (
            {"base": {"env": "CartPole-v1", "env_options": {}}, "settings": {"plain": {}}},
            "there is no planner for CartPole-v1",
        ),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(
    changes: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "run_setting", lambda *unit: pytest.fail("it ran"))
    plan = write_plan(tmp_path, **changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        run_experiment(plan, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_an_unknown_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experiment 'independent' is not known; did you mean"):
        run_experiment("independent", tmp_path)
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml"):
        run_experiment(str(tmp_path / "none.yaml"), tmp_path)


# Spread over processes ----------------------------------------------------------------------------


def test_how_seeds_share_processes_does_not_change_the_curves(
    recorded: tuple[Path, Path], tmp_path: Path
) -> None:
    plan, together = recorded
    run_experiment(plan, tmp_path / "uneven", per_process=2)  # two seeds, then one
    assert_same_figures(together, tmp_path / "uneven")


def watched(marks: Path) -> Callable[..., list[dict[str, Any]]]:
    """Return a ``run_setting`` that leaves a file named after the process that does the work.

    The first piece of work of a process waits for another process to have one too, so that a quick
    one cannot do everything alone.
    """
    folder = str(marks)
    marks.mkdir()

    def run(label: str, config: Any, experiment: Any) -> list[dict[str, Any]]:
        import os
        import time
        from pathlib import Path

        from marl_lib.units import run_setting

        (Path(folder) / f"{os.getpid()}-{label}-{config.seed}").touch()
        deadline = time.monotonic() + 60
        while len({p.name.split("-")[0] for p in Path(folder).iterdir()}) < 2:
            assert time.monotonic() < deadline, "no other process took part"
            time.sleep(0.01)
        return run_setting(label, config, experiment)

    return run


def processes(marks: Path) -> set[int]:
    names = [p.name for p in marks.iterdir()]
    assert sorted(n.split("-", 1)[1] for n in names) == sorted(
        f"{label}-{seed}" for label in ("plain", "no-double") for seed in range(3)
    )
    return {int(name.split("-")[0]) for name in names}


def test_two_processes_of_joblib_give_the_same_results(
    recorded: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, together = recorded
    monkeypatch.setattr(experiments, "run_setting", watched(tmp_path / "marks"))
    run_experiment(plan, tmp_path, per_process=1, n_jobs=2)
    assert len(processes(tmp_path / "marks") - {os.getpid()}) == 2
    assert_same_figures(together, tmp_path)


def test_the_same_call_runs_on_a_dask_cluster(
    recorded: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, together = recorded
    monkeypatch.setattr(experiments, "run_setting", watched(tmp_path / "marks"))
    with (
        LocalCluster(
            n_workers=2,
            processes=True,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(tmp_path),
        ) as cluster,
        Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        workers = set(client.run(os.getpid).values())
        run_experiment(plan, tmp_path, per_process=1)
    assert processes(tmp_path / "marks") == workers and len(workers) == 2
    assert os.getpid() not in workers
    assert_same_figures(together, tmp_path)

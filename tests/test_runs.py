"""A run's configuration (where it comes from, what is refused) and what its folder keeps."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
import yaml

from marl_lib import runs
from marl_lib.config import ConfigError, merge, to_mapping
from marl_lib.envs import ENVS, entry, make
from marl_lib.rollout import play
from marl_lib.training import EVALUATION_SEED

TINY: dict[str, Any] = {
    "seed": 2, "num_envs": 4, "timesteps": 200, "eval_every": 100, "eval_episodes": 3,
    "final_episodes": 6,
    "env_options": {"grid_size": [3, 3], "n_agents": 2, "n_targets": 2, "max_steps": 10},
    "dqn": {
        "encoder": {"hidden": [8]}, "batch_size": 8, "buffer_size": 160, "learning_starts": 40,
    },
}  # fmt: skip


# Where a configuration comes from -----------------------------------------------------------------


def test_what_nobody_says_is_what_ships_for_that_world_and_algorithm() -> None:
    shipped = yaml.safe_load((runs.CONFIGS / "gridworld-dqn.yaml").read_text())
    assert to_mapping(runs.run_config()) == to_mapping(runs.run_config({"env": "GridWorld"}))
    found = to_mapping(runs.run_config())
    assert merge(found, shipped) == found  # nothing of it changes what is there


def test_later_layers_lie_over_earlier_ones_key_by_key() -> None:
    config = runs.run_config(
        {"seed": 1, "dqn": {"gamma": 0.5, "batch_size": 7}}, {"dqn": {"gamma": 0.25}}, {"seed": 9}
    )
    assert config.seed == 9
    assert (config.dqn.gamma, config.dqn.batch_size) == (0.25, 7)  # type: ignore[attr-defined]
    shipped = yaml.safe_load((runs.CONFIGS / "gridworld-dqn.yaml").read_text())
    assert config.dqn.train_every == shipped["dqn"]["train_every"]  # type: ignore[attr-defined]


def test_another_world_does_not_take_the_settings_of_the_grid() -> None:
    config = runs.run_config({"env": "CartPole-v1", "algorithm": "dqn"})
    options = {"max_steps", "physics", "velocities", "history"}
    assert set(to_mapping(config)["env_options"]) == options
    assert config.timesteps == runs.RunConfig.timesteps


@pytest.mark.parametrize("env", ENVS)
def test_a_world_alone_names_an_algorithm_that_learns_it(env: str) -> None:
    config = runs.run_config({"env": env})
    agents = make(env).n_agents
    usual = "mappo" if agents > 1 else "attention_ppo"
    assert config.algorithm == ("dqn" if env == "GridWorld" else usual)


def test_the_published_configuration_of_attention_ppo_is_read(tmp_path: Path) -> None:
    path = tmp_path / "default.yaml"
    path.write_text(
        "env_name: CartPole-v1\ntotal_timesteps: 100000\neval_freq: 10000\nn_eval_episodes: 10\n"
        "ppo: {learning_rate: 3.0e-4, gamma: 0.99, clip_ratio: 0.2}\n"
        "attention: {n_heads: 8, d_model: 128, n_layers: 2, dropout: 0.1}\n"
    )
    config = runs.run_config(runs.find_config(str(path)))
    assert (config.env, config.algorithm) == ("CartPole-v1", "attention_ppo")
    assert (config.timesteps, config.eval_every, config.eval_episodes) == (100_000, 10_000, 10)
    found = config.attention_ppo  # type: ignore[attr-defined]
    assert (found.learning_rate, found.gamma, found.clip_ratio) == (3e-4, 0.99, 0.2)
    tokens = found.encoder
    assert (tokens.n_heads, tokens.d_model, tokens.n_layers, tokens.dropout) == (8, 128, 2, 0.1)
    assert to_mapping(config) == to_mapping(runs.run_config(runs.find_config("default")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"env_name": "CartPole-v1", "env": "CartPole-v1"}, "env is given twice, once as env"),
        ({"attention": {"n_head": 8}}, "in attention_ppo.encoder 'n_head' is not known"),
        ({"attention": 8}, "attention must be a mapping, got 8"),
        ({"attention": {"d_model": 30, "n_heads": 4}}, "d_model must be a multiple of n_heads"),
    ],
)
def test_a_published_configuration_that_is_wrong_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        runs.run_config({"env": "CartPole-v1"} if "env" not in values else {}, values)


@pytest.mark.parametrize("name", runs.shipped())
def test_what_ships_can_be_run(name: str) -> None:
    config = runs.run_config(runs.find_config(name))
    env = runs.world_maker(config)(2)
    learner = runs.build_learner(config, env)
    assert len(learner.seeds) == config.replicates
    if name != "default":  # in the names of its source
        assert set(runs.find_config(name)) <= set(to_mapping(config))


@pytest.mark.parametrize("env", ENVS)
def test_every_world_can_be_trained_on(env: str) -> None:
    changes = {k: v for k, v in TINY.items() if k not in ("env_options", "dqn")}
    changes |= {"env": env, "timesteps": 60}
    limited = "max_steps" in {f.name for f in fields(entry(env).options)}
    changes |= {"env_options": {"max_steps": 12}} if limited else {}
    result = runs.make_trainer(runs.run_config(changes), progress=False).train()
    assert result.final["episode_return"].shape == (1, 6)
    assert (result.final["episode_length"] <= (12 if limited else 40)).all()


@pytest.mark.parametrize("algorithm", runs.ALGORITHMS)
@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "continuous"])
def test_every_algorithm_learns_its_kind_of_world(algorithm: str, continuous: bool) -> None:
    """Every algorithm is trained on a world with its kind of actions, and refuses the other."""
    alone = algorithm in ("ppo", "attention_ppo", "sac")
    env = "gymnasium:Pendulum-v1" if continuous else "CartPole-v1"
    changes = {k: v for k, v in TINY.items() if k not in ("env_options", "dqn", "env")}
    changes |= {"algorithm": algorithm, "timesteps": 200, "env": env if alone else NAVIGATION}
    if not alone:
        changes["env_options"] = {"continuous": continuous}
    if algorithm in KINDS[continuous]:
        result = runs.make_trainer(runs.run_config(changes), progress=False).train()
        assert np.isfinite(result.final["episode_return"]).all()
        assert result.steps >= 200
    else:
        with pytest.raises(ConfigError, match="needs .* actions, those here are"):
            runs.make_trainer(runs.run_config(changes), progress=False)


NAVIGATION = "CooperativeNavigation"
EITHER = {"ppo", "attention_ppo", "ippo", "mappo", "maddpg"}
KINDS = {
    False: {"dqn", "vdn", "qmix", "wqmix", "pqn", "pqn_vdn", *EITHER},
    True: {"sac", *EITHER},
}


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "timesteps: 1_000\ndqn: {learning_rate: 3e-4, gamma: 1, encoder: {hidden: [32, 16]}}\n"
    )
    config = runs.run_config(runs.find_config(str(path)))
    assert config.timesteps == 1000
    dqn = config.dqn  # type: ignore[attr-defined]
    assert dqn.learning_rate == 3e-4 and isinstance(dqn.learning_rate, float)
    assert dqn.gamma == 1.0 and isinstance(dqn.gamma, float)
    assert dqn.encoder.hidden == (32, 16)


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    walls = {"walls": ["..#", "...", "#.."], "action_masks": True, "view_radius": 1}
    config = runs.run_config(TINY, {"env_options": walls, "threads": None, "replicates": 3})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_mapping(config)))
    assert to_mapping(runs.load_config(tmp_path)) == to_mapping(config)
    assert runs.load_config(tmp_path).seeds == [2, 3, 4]


def test_a_configuration_travels_between_processes_and_changes_nothing() -> None:
    """A class sent by value would come back over ours, with fields that have no default."""
    config = runs.run_config({"env": "TrafficJunction", "algorithm": "ippo"})
    (back,) = joblib.Parallel(n_jobs=2)([joblib.delayed(copy.copy)(config)])
    assert back == config and type(back) is type(config)
    assert runs.run_config({"env": "TrafficJunction", "algorithm": "ippo"}) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timestep": 5}, "configuration key 'timestep' is not known; did you mean 'timesteps'?"),
        ({"dqn": {"gama": 0.9}}, "in dqn 'gama' is not known; did you mean 'gamma'? (choices: "),
        ({"env_options": {"size": 3}}, "configuration key in env_options 'size' is not known"),
        ({"env": "Gridworld"}, "environment 'Gridworld' is not known; did you mean 'GridWorld'?"),
        ({"algorithm": "pop"}, "algorithm 'pop' is not known; did you mean 'ppo'? (choices: dqn,"),
        ({"timesteps": "many"}, "timesteps must be of type int, got 'many'"),
        ({"timesteps": 1.5}, "timesteps must be of type int, got 1.5"),
        ({"timesteps": True}, "timesteps must be of type int, got True"),
        ({"dqn": {"gamma": "high"}}, "dqn.gamma must be of type float, got 'high'"),
        ({"dqn": {"encoder": {"hidden": 64}}}, "dqn.encoder.hidden must be a list, got 64"),
        ({"dqn": {"encoder": {"hidden": [64, "x"]}}}, "hidden[1] must be of type int, got 'x'"),
        ({"dqn": {"encoder": "grue"}}, "dqn.encoder 'grue' is not known; did you mean 'gru'?"),
        ({"dqn": {"double": 1}}, "dqn.double must be of type bool, got 1"),
        ({"dqn": 3}, "dqn must be a mapping, got 3"),
        ({"dqn": {"gamma": 2}}, "gamma must be in [0, 1], got 2.0"),
        ({"dqn": {"learning_rate": float("nan")}}, "learning_rate must be a finite number, got"),
        ({"timesteps": 0}, "timesteps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"replicates": 0}, "replicates must be at least 1, got 0"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1 or null, got 0"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"env_options": {"targets": "all"}}, "env_options.targets 'all' is not known"),
        (
            {"env_options": {"grid_size": [1, 1]}},
            "n_agents + n_targets + n_goals must be at most 1",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        runs.make_trainer(runs.run_config(values), progress=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_buffer_too_small_for_the_environments_is_refused(tmp_path: Path) -> None:
    config = runs.run_config({"dqn": {"buffer_size": 63}, "num_envs": 64})
    with pytest.raises(ConfigError, match="buffer_size must be at least 64 here, got 63"):
        runs.train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text, message in [("[1, 2]", "must hold a mapping"), ("a: [", "is not valid YAML")]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"{re.escape(str(path))} {message}"):
            runs.find_config(str(path))
    with pytest.raises(ConfigError, match="cannot read .*none.yaml: No such file"):
        runs.find_config(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="configuration 'gridword-dqn' is not known; did you"):
        runs.find_config("gridword-dqn")
    with pytest.raises(ConfigError, match="cannot read .*config.yaml"):
        runs.load_learner(tmp_path)


# The folder ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return the folder of a finished run, not to be changed, and its result."""
    folder = tmp_path_factory.mktemp("runs") / "deep" / "tiny"
    config = runs.run_config(TINY, {"replicates": 2})
    return folder, runs.train(config, folder, progress=False)


def test_what_a_folder_holds(finished: tuple[Path, Any]) -> None:
    folder, result = finished
    names = {"config.yaml", "log.jsonl", "tensorboard", "checkpoint.pt", "summary.json"}
    assert {p.name for p in folder.iterdir()} == names
    values = yaml.safe_load((folder / "config.yaml").read_text())
    assert values["seed"] == 2 and values["dqn"]["gamma"] == 0.95  # the shipped value, written out
    assert values == to_mapping(runs.load_config(folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary()))
    assert {"mean", "iqm", "interval", "episodes", "environment_steps", "seconds"} < set(summary)
    assert summary["episodes"] == 12 and summary["environment_steps"] == 200


def test_an_existing_run_is_refused_and_left_alone(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=rf"{folder} already holds a run.*--resume {folder}"):
        runs.train(runs.run_config(TINY), folder, progress=False)
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    assert after == before


def test_a_loaded_learner_acts_as_at_the_end_of_training(finished: tuple[Path, Any]) -> None:
    folder, result = finished
    torch.manual_seed(99)
    config, learner = runs.load_learner(folder)
    env = runs.world_maker(config)(2 * 6)
    episodes = play(env, learner.policy(), [EVALUATION_SEED] * 2)
    np.testing.assert_array_equal(episodes.returns.reshape(2, 6), result.final["episode_return"])
    fresh = runs.build_learner(config, env)
    nets = [it.nets["agents"].flat for it in (fresh, learner)]
    assert not torch.equal(*nets)


def test_a_run_killed_before_its_first_step_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moment, a folder is either free to be used or can be gone on with."""

    class Killed(BaseException):
        pass

    def kill(*args: Any, **kwargs: Any) -> None:
        raise Killed

    folder = tmp_path / "run"
    for where, name in [
        (runs.Trainer, "save"),
        (runs.yaml, "safe_dump"),
        (runs, "_finish"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(where, name, kill)
            with pytest.raises(Killed):
                runs.train(runs.run_config(TINY), folder, progress=False)
    assert runs.resume(folder, progress=False).steps == 200


# Provenance ---------------------------------------------------------------------------------------


def test_provenance() -> None:
    found = runs.provenance()
    assert set(found) == {"commit", "versions", "machine", "date"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_the_commit_is_that_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy installed inside somebody else's repository must not claim its commit."""
    copy = tmp_path / "marl_lib" / "runs.py"
    copy.parent.mkdir()
    shutil.copy(runs.__file__, copy)
    monkeypatch.setattr(runs, "__file__", str(copy))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert runs._commit().startswith("release ")  # no repository at all

    def git(*args: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *identity, *args], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody else's")
    assert runs._commit().startswith("release ")
    git("add", "marl_lib")
    git("commit", "-q", "-m", "ours")
    head = git("rev-parse", "--short=12", "HEAD")
    assert runs._commit() == head
    copy.write_text("changed\n")
    assert runs._commit() == head + "+"
    monkeypatch.setenv("PATH", str(tmp_path))  # no git on this machine
    assert runs._commit().startswith("release ")


def test_no_replicate_trains_on_the_worlds_it_is_judged_on() -> None:
    assert (
        runs.run_config({"seed": EVALUATION_SEED - 2, "replicates": 2}).seeds[-1] < EVALUATION_SEED
    )
    with pytest.raises(ConfigError, match="seed must be .*evaluation"):
        runs.run_config({"seed": EVALUATION_SEED - 2, "replicates": 3})


# Devices ------------------------------------------------------------------------------------------


def test_auto_stands_for_cuda_where_there_is_one_and_enough_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    little = runs.run_config({"env": "GridWorld", "algorithm": "dqn"})
    much = runs.run_config(to_mapping(little), {"replicates": 100, "dqn": {"batch_size": 512}})
    assert little.device == much.device == "auto"
    by_hand = runs.run_config(to_mapping(much), {"device": "cpu"})
    if torch.cuda.is_available():
        assert runs.placed(much).device == "cuda"
    else:
        assert runs.placed(much).device == "cpu"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(ConfigError, match="device 'cuda' cannot be used"):  # so it was chosen
            runs.placed(much)
    assert runs.placed(little).device == "cpu"
    assert runs.placed(by_hand) is by_hand


def test_a_run_keeps_the_device_it_was_made_on(tmp_path: Path) -> None:
    config = runs.run_config({"timesteps": 640, "eval_episodes": 1, "final_episodes": 1})
    runs.train(config, tmp_path, progress=False)
    assert runs.load_config(tmp_path).device != "auto"


def test_work_counts_what_an_update_multiplies() -> None:
    """Two layers for every row of a batch; along stretches, for every step of them."""
    small = {"encoder": {"hidden": [8]}, "batch_size": 10, "learning_starts": 0}
    learner = runs.build_learner(
        runs.run_config({"dqn": small}), runs.world_maker(runs.run_config({}))(1)
    )
    n = learner.spec.n_agents
    assert learner.work == learner.nets["agents"].flat.numel() * 10 * n
    memory = {**small, "encoder": {"kind": "gru"}, "sequence_length": 6}
    long = runs.build_learner(
        runs.run_config({"dqn": memory}), runs.world_maker(runs.run_config({}))(1)
    )
    assert long.work == long.nets["agents"].flat.numel() * 60 * n

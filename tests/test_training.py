"""The off-policy loop: replicates, resume, checkpoints, full disks, logs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marl_lib import runs
from marl_lib.algorithms.dqn import DQN, DQNConfig
from marl_lib.checkpoint import CheckpointError, checkpoint, save_checkpoint
from marl_lib.config import ConfigError
from marl_lib.envs import BatchedGridWorld
from marl_lib.nn.encoders import MLPEncoder
from marl_lib.spec import Spec
from marl_lib.training import EVALUATION_SEED, LoopConfig, Trainer, TrainingDiverged, evaluate

TINY: dict[str, Any] = {
    "num_envs": 4, "timesteps": 400, "eval_every": 100, "eval_episodes": 4, "final_episodes": 5,
    "checkpoint_every": 100,  # where the curve has a point, the hardest place to go on from
    "env_options": {"grid_size": [3, 3], "n_agents": 2, "n_targets": 2, "max_steps": 10},
    "dqn": {
        "encoder": {"hidden": [8]}, "batch_size": 8, "buffer_size": 160, "learning_starts": 40,
        "train_every": 8, "target_every": 10, "epsilon_steps": 300,
    },
}  # fmt: skip
CARTPOLE = {
    **TINY,
    "env": "CartPole-v1",
    "env_options": {"max_steps": 30, "physics": {"length": [0.3, 0.9]}},
}


def trainer(folder: Path | None = None, **changes: Any) -> Trainer:
    return runs.make_trainer(runs.run_config(TINY, changes), folder, progress=False)


def weights(it: Trainer) -> torch.Tensor:
    return it.learner.nets["agents"].flat.detach().clone()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Return where two nested states differ by a bit.

    Seconds are not compared, nor is the state of torch's own generator, which no run draws from.
    """
    if type(a) is not type(b):
        return [at]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{at}: {sorted(set(a) ^ set(b), key=str)}"]
        return [
            d
            for k in a
            if k not in ("seconds", "torch")
            for d in differences(a[k], b[k], f"{at}.{k}")
        ]
    if isinstance(a, list | tuple):
        pairs = enumerate(zip(a, b, strict=True)) if len(a) == len(b) else ()
        found = [d for i, (x, y) in pairs for d in differences(x, y, f"{at}[{i}]")]
        return found if len(a) == len(b) else [at]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [at]


def assert_same_run(a: Path, b: Path) -> None:
    """Two run folders hold the same weights, optimiser, replay, worlds, curve and logs."""
    with checkpoint(a / "checkpoint.pt") as one, checkpoint(b / "checkpoint.pt") as other:
        assert not differences(one, other)
    assert (a / "log.jsonl").read_bytes() == (b / "log.jsonl").read_bytes()
    assert points(a) == points(b)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (a, b)]
    assert not differences(*summaries)


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a run: tag -> (step, value)."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


# Replicates and seeds -----------------------------------------------------------------------------


def first_updates(seed: int, replicates: int, share: bool) -> tuple[Trainer, np.ndarray]:
    """Run the shipped grid configuration to its hundredth update; return the actions too.

    All actions are random ones: where two values are equal up to rounding, another processor takes
    another action, and from there on two runs have nothing in common. And units are smooth: one
    that is rectified, and zero up to rounding, lets a gradient pass in one run and not in the
    other (with ReLU and torch's kernels without AVX, seed 0 parts at the fourth update, by one).
    """
    random = {"epsilon_start": 1.0, "epsilon_end": 1.0}
    smooth = {"encoder": {"activation": "tanh"}}
    settings = {"dqn": {"share_parameters": share, **random, **smooth}, "seed": seed}
    settings["replicates"] = replicates
    it = runs.make_trainer(runs.run_config(settings), progress=False)
    actions, act = [], it.learner.act

    def watched(obs: np.ndarray, info: Any) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        action, stored = act(obs, info)
        actions.append(action.reshape(replicates, it.learner.num_envs, -1))
        return action, stored

    it.learner.act = watched  # type: ignore[method-assign]
    while it.learner.updates < 100:
        it._step()
    return it, np.stack(actions, 1)  # (R, T, B, N)


@pytest.mark.parametrize("share", [True, False])
def test_a_replicate_of_ten_equals_a_run_of_its_seed_alone(share: bool) -> None:
    """Up to rounding: ten networks are multiplied in another order than one."""
    ten, actions = first_updates(0, 10, share)
    assert len(ten.learner.nets["agents"]) == 10
    for i in (0, 7):
        one, own = first_updates(i, 1, share)
        assert (actions[i] == own[0]).all()
        for role in ("fixed", "target"):
            alone = one.learner.nets["agents"].roles[role]
            for name, p in ten.learner.nets["agents"].roles[role].items():
                torch.testing.assert_close(p[i], alone[name][0], atol=1e-6, rtol=1e-5)
    # Not because all replicates are alike.
    weight = ten.learner.nets["agents"].params["network.head.advantage.weight"]
    assert (weight[0] - weight[7]).abs().max() > 0.01
    assert (actions[0] != actions[7]).mean() > 0.5


def test_the_same_seed_gives_the_same_run() -> None:
    a, b, c = trainer(seed=5), trainer(seed=5), trainer(seed=6)
    results = [it.train() for it in (a, b, c)]
    assert torch.equal(weights(a), weights(b)) and not torch.equal(weights(a), weights(c))
    assert results[0].curve == results[1].curve != results[2].curve
    for name in results[0].final:
        np.testing.assert_array_equal(results[0].final[name], results[1].final[name])


def test_the_state_of_torchs_generator_does_not_matter() -> None:
    found = []
    for state in (0, 1):
        torch.manual_seed(state)
        it = trainer()
        torch.rand(17)
        it.train()
        found.append(weights(it))
    assert torch.equal(*found)


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    seldom = trainer(eval_every=10**6, eval_episodes=1, checkpoint_every=10**6)
    often = trainer(tmp_path, eval_every=8, eval_episodes=3, checkpoint_every=8)
    assert len(seldom.train().curve.steps) == 2 < len(often.train().curve.steps)
    assert torch.equal(weights(seldom), weights(often))


# The loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timesteps", "num_envs", "every", "points_at", "end"),
    [
        (400, 4, 100, [0, 100, 200, 300, 400], 400),
        (401, 4, 100, [0, 100, 200, 300, 400, 404], 404),  # no multiple of num_envs: rounded up
        (100, 7, 50, [0, 56, 105], 105),  # the first step past each multiple of 50
        (40, 16, 8, [0, 16, 32, 48], 48),  # a step of the batch passes several
        (3, 8, 100, [0, 8], 8),
    ],
)
def test_where_the_curve_has_points(
    timesteps: int, num_envs: int, every: int, points_at: list[int], end: int
) -> None:
    it = trainer(timesteps=timesteps, num_envs=num_envs, eval_every=every, replicates=2)
    result = it.train()
    assert result.curve.steps == points_at
    assert result.steps == it.steps == it.learner.steps == end
    names = {"episode_return", "targets_collected", "episode_length"}
    assert names == set(result.curve.values) == set(result.final)
    assert result.curve.array().shape == (2, len(points_at))
    assert result.final["episode_return"].shape == (2, 5)
    assert result.seconds > 0


def test_each_replicate_is_judged_on_the_same_worlds() -> None:
    it = trainer(replicates=2, final_episodes=40)
    seen: list[np.ndarray] = []

    def stay(obs: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        seen.append(obs)
        return np.full(obs.shape[:2], 4)

    evaluate(it.make_env, stay, 2, 40)
    np.testing.assert_array_equal(seen[0][:40], seen[0][40:])
    assert len(np.unique(seen[0][:40], axis=0)) > 30  # and these are many worlds


def test_impossible_loops_are_refused() -> None:
    for name in ("timesteps", "eval_every", "eval_episodes", "final_episodes", "checkpoint_every"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
            LoopConfig(**{name: 0})


# Resume -------------------------------------------------------------------------------------------


def interrupted(config: runs.RunConfig, folder: Path, after: int) -> None:
    """Train in ``folder`` and break off after ``after`` steps of the batch, as Ctrl-C would."""
    step = Trainer._step

    def counted(self: Trainer) -> None:
        if self.steps >= after * config.num_envs:
            raise KeyboardInterrupt
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", counted)
        with pytest.raises(KeyboardInterrupt):
            runs.train(config, folder, progress=False)


@pytest.mark.parametrize(
    ("config", "after"),
    [
        ({}, [77]),
        ({"dqn": {"share_parameters": False, "n_step": 3}, "replicates": 2}, [77]),
        ({"env_options": {"action_masks": True, "walls": ["..#", "...", "#.."]}}, [77]),
        (CARTPOLE, [77]),
        ({}, [0, 3, 31, 99]),  # before the first checkpoint, at one, and again and again
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    config: dict, after: list[int], tmp_path: Path
) -> None:
    filled = runs.run_config(TINY if "env" not in config else {}, config)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.train(filled, whole, progress=False)
    interrupted(filled, broken, after[0])
    for next_stop in after[1:]:
        step = Trainer._step
        with pytest.MonkeyPatch.context() as patch:
            limit = next_stop * filled.num_envs

            def stop_there(self: Trainer, step: Any = step, limit: int = limit) -> None:
                if self.steps >= limit:
                    raise KeyboardInterrupt
                step(self)

            patch.setattr(Trainer, "_step", stop_there)
            with pytest.raises(KeyboardInterrupt):
                runs.resume(broken, progress=False)
    torch.rand(3)  # what the process did with torch's numbers before must not matter
    result = runs.resume(broken, progress=False)
    assert result.steps == 400
    assert_same_run(whole, broken)
    runs.resume(broken, progress=False)  # a finished run is judged again, nothing more
    assert_same_run(whole, broken)


def test_torchs_generator_is_restored(tmp_path: Path) -> None:
    it = trainer(tmp_path)
    torch.manual_seed(1)
    it.save()
    expected = torch.rand(3)
    torch.manual_seed(2)
    it.resume()
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_run_can_be_made_longer(whole: Path, tmp_path: Path) -> None:
    runs.train(runs.run_config(TINY, {"timesteps": 200}), tmp_path / "run", progress=False)
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("timesteps: 200", "timesteps: 400"))
    runs.resume(tmp_path / "run", progress=False)
    assert_same_run(whole, tmp_path / "run")


def test_kill_9_in_the_middle_then_resume(tmp_path: Path, root: Path) -> None:
    """A real process, killed where it stands; the resumed run is the same to the last bit."""
    changes = {"timesteps": 5_000, "eval_every": 400, "checkpoint_every": 200, "replicates": 2}
    config, killed = tmp_path / "tiny.yaml", tmp_path / "killed"
    config.write_text(json.dumps({**TINY, **changes}))  # JSON is YAML
    command = [sys.executable, "-m", "marl_lib.cli", "train", "--quiet"]
    process = subprocess.Popen(
        [*command, "--config", str(config), "--folder", str(killed)],
        cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    log, deadline = killed / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b"\n") >= 4):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9
    with checkpoint(killed / "checkpoint.pt") as state:
        assert 0 < state["steps"] < 5_000
    assert not (killed / "summary.json").exists()
    again = subprocess.run(
        [*command, "--resume", str(killed)], cwd=root, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    runs.train(runs.run_config(TINY, changes), tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", killed)


# Checkpoints --------------------------------------------------------------------------------------


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"x": torch.arange(3)}, path)
    before = path.read_bytes()

    class Crash(BaseException):
        """Not caught by anything: the machine stops here."""

    def crash(*args: Any) -> None:
        raise Crash

    for where, name in [(os, "fsync"), (Path, "replace"), (torch, "save")]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(where, name, crash)
            with pytest.raises(Crash):
                save_checkpoint({"x": torch.arange(4)}, path)
        assert path.read_bytes() == before
    save_checkpoint({"x": torch.arange(4)}, path)  # what the crash left behind is not in the way
    with checkpoint(path) as state:
        assert state["x"].tolist() == [0, 1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_data_reach_the_disk_before_the_name_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(fd: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def seen_replace(self: Path, to: Path) -> Path:
        calls.append("rename")
        return replace(self, to)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    save_checkpoint({"x": 1}, tmp_path / "checkpoint.pt")
    assert calls == ["file", "rename", "folder"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "finished"
    runs.train(runs.run_config(TINY, {"replicates": 2, "seed": 3}), folder, progress=False)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_an_error_and_stays(run: Path, keep: float) -> None:
    path = run / "checkpoint.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    before = contents(run)
    for use in (runs.resume, runs.load_learner):
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged"):
            use(run)
    assert contents(run) == before


def test_a_checkpoint_that_does_not_fit_is_an_error(run: Path) -> None:
    config = (run / "config.yaml").read_text()
    for old, new in [
        ("hidden:\n    - 8", "hidden:\n    - 9"),
        ("replicates: 2", "replicates: 3"),
        ("buffer_size: 160", "buffer_size: 200"),
    ]:
        assert old in config
        (run / "config.yaml").write_text(config.replace(old, new))
        before = contents(run)
        for use in (runs.resume, runs.load_learner):
            with pytest.raises(CheckpointError, match="belongs to another configuration"):
                use(run)
        assert contents(run) == before
    for other in ({"model": torch.ones(3)}, torch.ones(3), 5):
        torch.save(other, run / "checkpoint.pt")
        with pytest.raises(CheckpointError, match="belongs to another configuration"):
            runs.load_learner(run)
    (run / "checkpoint.pt").unlink()
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        runs.resume(run)


def test_checkpoints_hold_no_code(run: Path, tmp_path: Path) -> None:
    torch.load(run / "checkpoint.pt", weights_only=True)  # plain tensors, numbers and text
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (touched,))

    for write in (torch.save, lambda x, p: p.write_bytes(pickle.dumps(x, protocol=2))):
        write({"learner": Evil()}, run / "checkpoint.pt")
        with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
            runs.load_learner(run)
        assert not touched.exists()


def test_nothing_to_resume_without_a_folder() -> None:
    with pytest.raises(ValueError, match="no folder"):
        trainer().resume()


# Full disks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run of TINY, not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    runs.train(runs.run_config(TINY), folder, progress=False)
    return folder


def test_a_full_disk_keeps_the_last_good_checkpoint(whole: Path, tmp_path: Path) -> None:
    """/dev/full stands in for the file that the disk has no room for."""
    interrupted(runs.run_config(TINY), tmp_path, 60)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.part").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="cannot write.*: No space left on device$"):
        runs.resume(tmp_path, progress=False)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    runs.resume(tmp_path, progress=False)  # room again
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("name", ["log.jsonl", "tensorboard/events.out.tfevents.run"])
def test_a_log_without_room_stops_the_run_where_it_can_go_on(
    name: str, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        runs.train(runs.run_config(TINY), tmp_path, progress=False)
    (tmp_path / name).unlink()
    runs.resume(tmp_path, progress=False)
    assert_same_run(whole, tmp_path)


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Return a folder that holds 300 KiB, and what a command must begin with for it to be so."""
    folder = tmp_path / "cramped"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and shutil.which("mount") and not subprocess.call(mount)
    # Without the right to mount, a limit on the size of each file does the same to a writer.
    yield folder, [] if mounted else ["sh", "-c", 'ulimit -f 400; exec "$@"', "sh"]
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_in_one_line(cramped: tuple[Path, list[str]], root: Path) -> None:
    folder, prefix = cramped
    config = {**TINY, "timesteps": 20_000, "checkpoint_every": 400, "eval_every": 400}
    config["dqn"] = {**TINY["dqn"], "buffer_size": 4_000}  # a checkpoint grows to half a megabyte
    (folder / "c.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "marl_lib.cli", "train", "--quiet", "--config"]
    ended = subprocess.run(
        [*prefix, *command, str(folder / "c.yaml"), "--folder", str(folder / "run")],
        cwd=root, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"marl: cannot write the checkpoint {folder}")
    assert ended.stderr.endswith(("No space left on device\n", "File too large\n"))
    with checkpoint(folder / "run" / "checkpoint.pt") as state:  # the last good one
        assert state["steps"] >= 400
    config, learner = runs.load_learner(folder / "run")
    assert learner.steps == state["steps"]
    assert not (folder / "run" / "checkpoint.part").exists()


# Divergence ---------------------------------------------------------------------------------------


class Poisoned(BatchedGridWorld):
    """Pays NaN to the second half of the batch from its thirtieth step on."""

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reward, done = super()._advance(action)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls >= 30:
            reward[self.num_envs // 2 :] = np.nan
        return reward, done


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    world = {"grid_size": (3, 3), "n_agents": 2, "n_targets": 2, "max_steps": 10}
    config = DQNConfig(
        encoder=MLPEncoder(hidden=(8,)), batch_size=32, learning_starts=40, train_every=4
    )
    learner = DQN(Spec(11, 5, 2), 4, [11, 23], config)
    it = Trainer(
        lambda num_envs: Poisoned(num_envs, **world),
        learner,
        LoopConfig(timesteps=4_000, eval_every=20, eval_episodes=1, checkpoint_every=20),
        tmp_path,
        progress=False,
    )
    with pytest.raises(TrainingDiverged) as caught:
        it.train()
    message = str(caught.value)
    assert "seed 23" in message and f"step {it.steps};" in message and "not finite" in message
    assert 30 * 4 <= it.steps < 40 * 4
    assert str(tmp_path / "checkpoint.pt") in message
    with checkpoint(tmp_path / "checkpoint.pt") as state:
        assert 100 <= state["steps"] < it.steps
        kept = state["learner"]["nets"]["agents"]["flat"]
        assert kept.isfinite().all()
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def test_a_run_without_a_folder_names_no_checkpoint() -> None:
    it = trainer()
    metrics = {"loss": np.array([np.inf])}
    with pytest.raises(TrainingDiverged, match=r"^loss of seed 0 is not finite at step 0$"):
        it._check_finite(metrics)


# Stopping early -----------------------------------------------------------------------------------


def cartpole(**changes: Any) -> Trainer:
    config = {
        "env": "CartPole-v1", "algorithm": "ppo", "num_envs": 16, "timesteps": 4_096,
        "eval_every": 1_024, "eval_episodes": 5, "final_episodes": 5,
        "ppo": {"encoder": {"hidden": [8]}},
    }  # fmt: skip
    return runs.make_trainer(runs.run_config(config, changes), progress=False)


def test_training_stops_at_the_goal_when_every_replicate_has_it_and_not_before_it_began() -> None:
    assert cartpole(stop_at=1.0).train().steps == 1_024  # an untrained net reaches it, at step 0
    it = cartpole(stop_at=1.0, replicates=2)
    it._evaluate = lambda bar: it.curve.add(  # type: ignore[method-assign]
        it.steps, {"episode_return": np.array([5.0, 5.0 if it.steps >= 3_000 else 0.0])}
    )
    assert it.train().steps == 3_072
    assert cartpole(stop_at=501.0).train().steps == 4_096


def test_what_stopped_training_is_judged_again_on_other_worlds() -> None:
    it = cartpole(stop_at=1.0)
    result = it.train()
    again = evaluate(it.make_env, it.learner.policy(), 1, 5, EVALUATION_SEED + 1)
    np.testing.assert_array_equal(result.final["episode_return"], again["episode_return"])
    plain = cartpole(timesteps=1_024).train()
    assert not np.array_equal(plain.final["episode_return"], again["episode_return"])


def test_a_policy_is_judged_as_it_acts_where_that_is_asked_for() -> None:
    greedy, sampled = cartpole(eval_episodes=50), cartpole(eval_episodes=50, sampled=True)
    first, second = greedy.train(), sampled.train()
    pair = [it.learner.nets["actor"].flat for it in (greedy, sampled)]
    assert torch.equal(*pair)
    assert first.curve.values != second.curve.values
    assert second.curve.values == cartpole(eval_episodes=50, sampled=True).train().curve.values
    assert 15 < second.curve.array()[0, 0] < 35  # an untrained policy acts at random
    # One that explores by chance is judged with its exploration.
    assert trainer(sampled=True).train().curve.values != trainer().train().curve.values


# Logs ---------------------------------------------------------------------------------------------


def test_log_and_tensorboard_say_the_same(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 100, 200, 300, 400]
    world = {"episode_return", "episode_length", "targets_collected"}
    assert set(rows[0]) == {"step", *world}  # nothing learned yet
    assert all(set(row) == {"step", *world, "loss", "grad_norm"} for row in rows[1:])
    for row in rows:
        figures = [value for name, value in row.items() if name != "step"]
        assert all(len(value) == 2 and np.isfinite(value).all() for value in figures)
    shown = points(finished)
    assert set(shown) == {
        f"{name}/seed_{s}" for name in (*world, "loss", "grad_norm") for s in (3, 4)
    }
    for tag, series in shown.items():
        name, seed = tag.split("/seed_")
        logged = [(row["step"], row[name][int(seed) - 3]) for row in rows if name in row]
        np.testing.assert_allclose(series, logged, rtol=1e-6)
    with checkpoint(finished / "checkpoint.pt") as state:
        curve = state["curve"]
    assert curve["values"]["episode_return"] == [row["episode_return"] for row in rows]


def test_the_last_evaluation_makes_the_summary(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    wanted = {"mean", "iqm", "std", "interval", "episodes", "environment_steps", "seconds"}
    assert set(summary) == wanted
    config, learner = runs.load_learner(finished)
    final = evaluate(runs.world_maker(config), learner.policy(), 2, config.final_episodes)
    returns = final["episode_return"].ravel()
    assert summary["episodes"] == len(returns) == 10
    assert summary["mean"] == pytest.approx(returns.mean())
    assert summary["interval"][0] <= summary["iqm"] <= summary["interval"][1]
    assert summary["environment_steps"] == 400 and summary["seconds"] > 0

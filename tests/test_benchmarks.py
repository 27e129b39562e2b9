"""The harness of the benchmarks: its clock, its arithmetic, its records. No peer is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import pytest

from benchmarks import (
    judge,
    peers,
    record,
    replicates,
    startup,
    team_training,
    time_to_threshold,
    worlds,
)
from benchmarks.time_to_threshold import Contender, ContenderFailed
from marl_lib.training import EVALUATION_SEED

ROOT = Path(__file__).resolve().parents[1]


def contender(code: str, name: str = "a program", **more) -> Contender:
    """Return a contender that runs some Python; it has ``seed`` and ``folder``."""
    given = (
        "import json, sys, time, pathlib; seed, folder = int('{seed}'), pathlib.Path('{folder}')"
    )
    return Contender(name, "some", ("{python}", "-c", f"{given}\n{code}"), **more)


def says(**values) -> str:
    said = {"reached": True, "return": 480.5, "steps": 4_096} | values
    return f"print(json.dumps({said!r}), flush=True)"


# The record --------------------------------------------------------------------------------------


def test_a_ratio_above_one_means_slower_than_the_first_of_the_task():
    times = [record.row("a", "ours", [2.0, 1.0, 3.0]), record.row("a", "peer", [9.0, 5.0, 4.0])]
    other = [record.row("b", "ours", [10.0]), record.row("b", "peer", [4.0])]
    found = record.with_ratios([*times, *other], lower_is_better=True)
    assert [r["median"] for r in found] == [2.0, 5.0, 10.0, 4.0]
    assert [r["ratio"] for r in found] == [1.0, 2.5, 1.0, 0.4]
    found = record.with_ratios([*times, *other], lower_is_better=False)
    assert [r["ratio"] for r in found] == [1.0, 0.4, 1.0, 2.5]


def test_what_did_not_arrive_counts_as_slowest_and_has_no_median_if_it_is_most():
    one, most = (record.row("a", "x", v) for v in ([3.0, None, 1.0], [None, 2.0, None]))
    assert (one["median"], one["values"]) == (3.0, [3.0, None, 1.0])
    assert (most["median"], most["values"]) == (None, [None, 2.0, None])
    rows = [record.row("a", "ours", [1.0]), most]
    assert record.with_ratios(rows, lower_is_better=True)[1]["ratio"] is None
    assert record.with_ratios(rows[::-1], lower_is_better=True)[1]["ratio"] is None


def test_a_record_says_where_it_comes_from_and_is_kept_as_json(tmp_path):
    rows = [record.row("a", "ours", [2.0]), record.row("a", "peer", [None])]
    found = record.record(
        "speed", "How fast", "s", rows, lower_is_better=True, load=0.25, packages=["pytest"]
    )
    path = record.write(found, tmp_path / "new")
    assert path.name == "speed.json"
    assert json.loads(path.read_text()) == found
    assert found["versions"]["pytest"] == pytest.__version__
    assert {"commit", "date", "machine", "load", "command", "run"} <= set(found)
    head, machine, ours, peer = record.table(found).splitlines()
    assert "How fast" in head and found["machine"] in machine
    assert ours.split() == ["a", "ours", "2.0", "1.0", "×"]
    assert peer.split() == ["a", "peer", "not", "reached"]


@pytest.mark.parametrize("path", sorted(record.RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_recorded_figures_follow_from_recorded_values(path):
    found = json.loads(path.read_text())
    assert found["benchmark"] == path.stem
    again = [record.row(r["task"], r["name"], r["values"]) for r in found["rows"]]
    again = record.with_ratios(again, found["lower_is_better"])
    for r, expected in zip(found["rows"], again, strict=True):
        assert r["median"] == pytest.approx(expected["median"], rel=1e-3)
        assert r["ratio"] == pytest.approx(expected["ratio"], rel=1e-2)
    assert record.table(found)


# The clock ---------------------------------------------------------------------------------------


def test_the_clock_stops_at_the_line_and_leaves_judging_out():
    start = perf_counter()
    code = f"time.sleep(0.6)\nprint('progress {{')\n{says(not_counted=0.4)}\ntime.sleep(60)"
    found = time_to_threshold.run(contender(code), seed=3)
    wall = perf_counter() - start
    assert found["seed"] == 3
    assert (found["reached"], found["return"], found["steps"]) == (True, 480.5, 4_096)
    assert 0.2 <= found["seconds"] <= wall - 0.4 < 30


def test_start_up_counts():
    found = time_to_threshold.run(contender(says()), seed=0)
    assert found["seconds"] > 0.005  # no interpreter starts faster


@pytest.mark.parametrize(("mean", "reached"), [(475.0, True), (474.9, False)])
def test_without_a_line_the_end_stops_the_clock_and_the_run_folder_tells(mean, reached):
    figures = json.dumps({"mean": mean, "environment_steps": 512})
    code = (
        f"(folder / 'run').mkdir()\n(folder / 'run' / 'summary.json').write_text({figures!r})\n"
        "time.sleep(0.3)"
    )
    found = time_to_threshold.run(contender(code), seed=0)
    assert (found["reached"], found["return"], found["steps"]) == (reached, mean, 512)
    assert found["seconds"] >= 0.3 and found["not_counted"] == 0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no such algorithm')", "a program, seed 7.*code 1.*no such algorithm"),
        ("print('done')", "gave no result"),
        ("print('{not json'); print('[1]'); print('{}')", "gave no result"),
    ],
)
def test_a_contender_that_fails_is_no_result(code, message):
    with pytest.raises(ContenderFailed, match=message):
        time_to_threshold.run(contender(code), seed=7)


def test_a_contender_that_hangs_is_ended():
    start = perf_counter()
    with pytest.raises(ContenderFailed):
        time_to_threshold.run(contender("time.sleep(60)"), seed=0, limit=0.5)
    assert perf_counter() - start < 30


def test_contenders_take_turns_and_each_begins_once(capsys, monkeypatch):
    order = []

    def run(who, seed):
        order.append(f"{who.name}{seed}")
        return {"seconds": 1.0, "return": 500.0, "steps": 1, "seed": seed}

    monkeypatch.setattr(time_to_threshold, "run", run)
    runs = time_to_threshold.in_turns([contender("", name) for name in "ABC"], 3)
    assert order == ["A0", "B0", "C0", "B1", "C1", "A1", "C2", "A2", "B2"]
    assert [[r["seed"] for r in of] for of in runs] == [[0, 1, 2]] * 3


def test_peers_run_by_hand_get_a_record_of_their_own_beside_ours(monkeypatch, capsys):
    monkeypatch.setattr(time_to_threshold, "PACKAGES", ())
    entered = [
        contender(says(not_counted=0.0), "ours"),
        contender(says(reached=False), "package"),
        contender(says(), "source", versions={"commit": "abc"}, how="from a checkout"),
    ]
    packaged, by_hand = time_to_threshold.measure(entered, seeds=1)
    assert [r["name"] for r in packaged["rows"]] == ["ours", "package"]
    assert [r["name"] for r in by_hand["rows"]] == ["ours", "source"]
    assert packaged["rows"][0] == by_hand["rows"][0]
    assert packaged["rows"][1]["values"] == [None]
    assert packaged["run"] == "make bench" and by_hand["run"] == "by hand"
    assert by_hand["rows"][1]["how"] == "from a checkout"
    assert packaged["benchmark"] != by_hand["benchmark"]


# Training a team --------------------------------------------------------------------------------


def test_teams_are_trained_in_turns_and_compared_task_by_task(monkeypatch, capsys):
    """Ours is measured for what it is, the peers by the line that they print."""
    said = "print('chatter'); print(json.dumps({'env_steps': 50, 'seconds': 5}))"
    slow = contender(said, "peer", versions={"commit": "abc"}, how="from a checkout")
    found = team_training.measure([("vdn", slow), ("mappo", slow)], repetitions=2, steps=1_000)
    assert found["run"] == "by hand" and found["lower_is_better"] is False
    tasks = [team_training.TASKS[key].title for key in ("mappo", "mappo", "vdn", "vdn")]
    assert [r["task"] for r in found["rows"]] == tasks
    assert [r["name"] for r in found["rows"]] == ["marl_lib", "peer"] * 2
    for mine, theirs in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        assert theirs["values"] == [10, 10] and theirs["how"] == "from a checkout"
        assert len(mine["values"]) == 2 and min(mine["values"]) > 10
        assert theirs["ratio"] == pytest.approx(mine["median"] / 10, rel=0.01)
    order = [line.split()[2:] for line in capsys.readouterr().out.splitlines()]
    once = [[name, key] for key in ("mappo", "vdn") for name in ("marl_lib", "peer")]
    assert order == 2 * once


def test_a_team_that_says_nothing_is_named_with_its_last_words():
    with pytest.raises(ContenderFailed, match=r"peer gave no result \(exit code 1\).*no such team"):
        team_training.rate(contender("sys.exit('no such team')", "peer"))


@pytest.mark.parametrize("key", team_training.TASKS)
def test_the_settings_of_every_team_can_be_trained(key):
    said = team_training.train(key, 1_200)
    assert said["env_steps"] >= 1_200 and said["seconds"] > 0


# The judge ---------------------------------------------------------------------------------------


def test_the_judge_knows_good_from_bad_and_keeps_its_time():
    start = perf_counter()
    judged = judge.Judge()
    assert judge.SEED == EVALUATION_SEED
    assert 8 <= judged(lambda obs: np.zeros(len(obs), int)) <= 11  # it falls over at once
    before = judged.seconds
    good = judged(lambda obs: (obs @ [0.05, 0.1, 1.0, 0.5] > 0).astype(int))
    assert good == 500
    assert before < judged.seconds < perf_counter() - start

    def slow(obs):  # and bad
        sleep(0.01)
        return np.ones(len(obs), int)

    before = judged.seconds
    judged(slow)
    assert judged.seconds - before >= 0.08  # the policy's time is not the contender's either


def test_luck_does_not_reach_the_threshold(monkeypatch):
    judged = judge.Judge()
    scores = {judge.SEED: 480.0, judge.SEED + 1: 470.0}
    monkeypatch.setattr(judged, "_play", lambda policy, seed: scores[seed])
    assert judged(None) == 470
    scores[judge.SEED] = 474.9
    assert judged(None) == 474.9


# The peers ---------------------------------------------------------------------------------------


def test_a_schedule_falls_from_its_value_to_zero():
    falling = peers.schedule("lin_0.2")
    assert [falling(p) for p in (1.0, 0.5, 0.0)] == [0.2, 0.1, 0.0]
    assert peers.schedule(1e-3) == 1e-3


def test_a_peer_starts_without_what_the_harness_loads():
    code = "import sys, benchmarks.peers; print({'torch', 'gymnasium'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"


@pytest.fixture
def fake_library(monkeypatch):
    """Put a library in the place of stable-baselines3 whose policy gets better with its steps."""
    made = types.SimpleNamespace()

    class Callback:
        pass

    class PPO:
        def __init__(self, policy, env, **options):
            made.options, made.envs = options, env
            self.steps = 0  # of all rounds

        def learn(self, timesteps, callback):
            callback.num_timesteps = 0
            while callback.num_timesteps < timesteps:
                callback._on_rollout_start()
                if not callback._on_step():
                    break
                callback.num_timesteps += 1_024
                self.steps += 1_024
            callback._on_training_end()

        def predict(self, obs, deterministic):
            assert not deterministic
            good = self.steps >= made.learns_at
            return (obs @ [0.05, 0.1, 1.0, 0.5] > 0).astype(int) if good else np.zeros(
                len(obs), int
            ), None

    def module(name, **contents):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        vars(sys.modules[name]).update(contents)

    module("stable_baselines3", PPO=PPO)
    module("stable_baselines3.common", __path__=[])
    module("stable_baselines3.common.callbacks", BaseCallback=Callback)
    make = types.SimpleNamespace(make_vec_env=lambda name, **options: options)
    module("stable_baselines3.common.env_util", **vars(make))
    return made


@pytest.mark.parametrize(
    ("learns_at", "reached", "steps"),
    [
        (5_000, True, 8_192),  # judged every 4,096 steps
        (9_900, True, 10_240),  # and at the end of a round
        (15_000, True, 10_240 + 8_192),  # in the next round
        (10**6, False, 3 * 10_240),
    ],
)
def test_a_peer_is_judged_now_and_then_and_stopped_once_it_is_good(
    fake_library, learns_at, reached, steps
):
    fake_library.learns_at = learns_at
    options = {"learning_rate": "lin_0.5", "gamma": 0.9}
    peer = peers.Peer("fake", "stable_baselines3", 4, 10_240, options)
    found = peers.train(peer, seed=5)
    assert (found["reached"], found["steps"]) == (reached, steps)
    assert (found["return"] == 500) == reached
    assert found["not_counted"] > 0
    assert fake_library.envs == {"n_envs": 4, "seed": 5}
    assert fake_library.options["seed"] == 5 and fake_library.options["gamma"] == 0.9
    assert fake_library.options["learning_rate"](0.5) == 0.25


def test_every_peer_is_entered_and_ours_is_first():
    ours, *theirs = time_to_threshold.contenders()
    assert ours.filled(4, "/tmp/x")[:4] == [sys.executable, "-m", "marl_lib.cli", "train"]
    assert {"--seed", "4", "/tmp/x/run"} <= set(ours.filled(4, "/tmp/x"))
    assert [c.name for c in theirs] == [p.name for p in peers.PEERS.values()]
    assert len({c.name for c in [ours, *theirs]}) == len(theirs) + 1
    for c, key in zip(theirs, peers.PEERS, strict=True):
        assert c.filled(4, "")[1:] == ["-m", "benchmarks.peers", key, "--seed", "4"]
        assert f"{peers.PEERS[key].num_envs} environments" in c.settings


# The others --------------------------------------------------------------------------------------


def test_worlds_are_measured_beside_gymnasium(tmp_path):
    (found,) = worlds.measure(batches=(4,), seconds=0.01, particles=False)
    assert len(found["rows"]) == 2 * len(worlds.WORLDS) + 1
    assert all(len(r["values"]) == 5 and min(r["values"]) > 0 for r in found["rows"])
    assert record.write(found, tmp_path).stem == "worlds"


def test_replicates_are_measured_in_turns(monkeypatch):
    monkeypatch.setattr(replicates, "learner", lambda count, batch, agents: count)
    monkeypatch.setattr(replicates, "milliseconds", lambda count, updates=40: 2.0 + count)
    monkeypatch.setattr(replicates.torch, "set_num_threads", lambda threads: None)
    (found,) = replicates.measure(threads_tried=(1,))
    assert {r["ratio"] for r in found["rows"]} == {1.0, 4.0}
    assert found["lower_is_better"]


def test_start_up_is_measured_from_fresh_processes(monkeypatch):
    monkeypatch.setattr(startup, "IMPORTS", {"sleeps": "import time; time.sleep(0.3)", "not": ""})
    monkeypatch.setattr(startup, "PACKAGES", ())
    (found,) = startup.measure(turns=2)
    sleeps, nothing = found["rows"]
    assert sleeps["median"] - nothing["median"] > 0.2 and len(sleeps["values"]) == 2
    with pytest.raises(subprocess.CalledProcessError):
        startup.seconds("import nothing_of_this_name")

"""The ``marl`` command: what each command prints and keeps, and one clear line for each failure."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from marl_lib import cli, runs
from marl_lib.checkpoint import checkpoint
from marl_lib.config import Config, Count, Unit, Variant, from_mapping, merge
from marl_lib.envs import ENVS, OTHERS
from marl_lib.plans import shipped_experiments
from marl_lib.training import Trainer, TrainingDiverged

TINY: dict[str, Any] = {
    "seed": 4, "num_envs": 4, "timesteps": 200, "eval_every": 100, "eval_episodes": 3,
    "final_episodes": 6,
    "env_options": {"grid_size": [3, 3], "n_agents": 2, "n_targets": 2, "max_steps": 10},
    "dqn": {
        "encoder": {"hidden": [8]}, "batch_size": 8, "buffer_size": 160, "learning_starts": 40,
    },
}  # fmt: skip


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Marl:
    """Runs ``marl`` in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *args: Any) -> Ended:
        code = 0
        self.capfd.readouterr()
        try:
            cli.main([str(a) for a in args])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Ended(code, *self.capfd.readouterr())

    def fails(self, *args: Any) -> str:
        """Run a command that must fail with one line; return the line."""
        ended = self(*args)
        assert ended.code == 1, ended
        assert ended.out == ""
        assert re.fullmatch(r"marl: [^\n]+\n", ended.err), ended.err
        assert "Traceback" not in ended.err and not re.search(r"[\x1b│╭╰─]", ended.err)
        return ended.err


@pytest.fixture
def marl(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> Marl:
    """Return the command, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Marl(capfd)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run of two replicates, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    runs.train(runs.run_config(TINY, {"replicates": 2}), folder, progress=False)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(TINY))  # JSON is YAML
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def figures(out: str) -> dict[str, str]:
    """Return the name and value of each line that a command printed."""
    return dict(line.split(None, 1) for line in out.splitlines() if len(line.split(None, 1)) == 2)


# What it does -------------------------------------------------------------------------------------


def test_the_command_is_installed() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="marl")
    assert entry.load() is cli.main


def test_help(marl: Marl) -> None:
    for args in (["--help"], ["-h"]):
        ended = marl(*args)
        assert ended.code == 0 and ended.err == ""
        for name in ("train", "evaluate", "experiment", "report", "list", "show"):
            assert re.search(rf"(?m)^  {name} ", ended.out)
    ended = marl()
    assert ended.code == 1 and "usage: marl COMMAND" in ended.out + ended.err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["--config", "--folder", "--resume", "--timesteps", "--dqn.learning-rate"]),
        ("evaluate", ["--episodes", "--record", "folder"]),
        (
            "experiment",
            ["--results", "--seeds", "--jobs", "--per-process", "--overwrite", "--resume"],
        ),
        ("report", ["experiments", "--out", "--results", "--threshold", "--baseline"]),
        ("list", ["usage: marl list"]),
        ("show", ["what", "--results"]),
    ],
)
def test_help_of_each_command(marl: Marl, command: str, words: list[str]) -> None:
    ended = marl(command, "--help")
    assert ended.code == 0 and ended.err == ""
    for word in words:
        assert word in ended.out, word


def test_help_follows_the_world(marl: Marl) -> None:
    """Every option has a word of explanation, and another world has other options."""
    grid = marl("train", "--help").out
    assert "--env-options.grid-size" in grid and "--env-options.physics" not in grid
    cart = marl("train", "--env", "CartPole-v1", "--help").out
    assert "--env-options.physics" in cart and "--env-options.grid-size" not in cart
    assert "Updates between steps of the target networks" in re.sub(r"[│\s]+", " ", grid)


def test_list(marl: Marl) -> None:
    ended = marl("list")
    assert ended.code == 0
    shown = figures(ended.out)
    assert shown["worlds"].split(", ") == [*ENVS, *(f"{p}NAME" for p in OTHERS)]
    assert shown["algorithms"].split(", ") == list(runs.ALGORITHMS)
    assert shown["configurations"].split(", ") == list(runs.shipped())
    assert shown["experiments"].split(", ") == list(shipped_experiments())


def test_train_show_evaluate(marl: Marl, tiny: Path, tmp_path: Path) -> None:
    trained = marl("train", "--config", tiny, "--quiet")
    assert trained.code == 0 and trained.err == ""
    folder = tmp_path / "runs" / "gridworld-dqn-4"  # a folder of its own, named after the run
    assert "kept in runs/gridworld-dqn-4" in trained.out
    summary = json.loads((folder / "summary.json").read_text())
    assert figures(trained.out)["mean"] == f"{summary['mean']:.3f}"

    shown = marl("show", "runs/gridworld-dqn-4")
    assert shown.code == 0
    config = (folder / "config.yaml").read_text()
    assert shown.out.startswith(config)
    assert figures(shown.out)["environment_steps"] == "200"

    same = marl("evaluate", folder, "--episodes", 6)  # the episodes of the last evaluation
    assert same.code == 0
    assert figures(same.out)["mean"] == figures(trained.out)["mean"]
    assert {"iqm", "interval", "episodes", "targets_collected"} <= set(figures(same.out))
    other = marl("evaluate", folder, "--episodes", 50, "--seed", 7)
    assert figures(other.out)["episodes"] == "50"
    elsewhere = marl("evaluate", folder, "--episodes", 6, "--seed", 7)  # in other worlds
    assert figures(elsewhere.out)["interval"] != figures(same.out)["interval"]

    resumed = marl("train", "--resume", folder, "--quiet")  # a finished run is at its end
    assert resumed.code == 0 and resumed.err == ""
    assert figures(resumed.out)["mean"] == figures(trained.out)["mean"]


def test_the_progress_bar_is_not_in_the_way(marl: Marl, tiny: Path) -> None:
    ended = marl("train", "--config", tiny, "--timesteps", 40, "--folder", "x")
    assert ended.code == 0
    assert "40/40" in ended.err and "return=" in ended.err  # the bar
    assert "%" not in ended.out


def test_file_and_flags_fill_a_configuration(marl: Marl, tiny: Path, tmp_path: Path) -> None:
    """Flags lie over the file, and the file over what ships."""
    flags = ["--timesteps", "40", "--dqn.learning-rate", "3e-4", "--dqn.encoder.hidden", "4", "6"]
    flags += ["--dqn.no-double", "--env-options.shared-reward", "--env-options.grid-size", "3", "4"]
    ended = marl("train", "--config", tiny, "--quiet", "--folder", "here", *flags)
    assert ended.code == 0, ended.err
    found = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())
    assert (found["timesteps"], found["seed"], found["threads"]) == (40, 4, 1)
    assert found["dqn"]["learning_rate"] == 3e-4 and found["dqn"]["encoder"]["hidden"] == [4, 6]
    assert found["dqn"]["double"] is False and found["env_options"]["shared_reward"] is True
    assert found["env_options"]["grid_size"] == [3, 4] and found["env_options"]["max_steps"] == 10
    shipped = yaml.safe_load((runs.CONFIGS / "gridworld-dqn.yaml").read_text())
    assert found["dqn"]["train_every"] == shipped["dqn"]["train_every"]


def test_another_world_by_flag(marl: Marl, tmp_path: Path) -> None:
    flags = [
        "--env=CartPole-v1",
        "--algorithm=dqn",
        "--num-envs",
        "4",
        "--timesteps",
        "40",
        "--final-episodes",
        "2",
    ]
    flags += ["--eval-episodes", "2", "--env-options.max-steps", "20", "--dqn.encoder.hidden", "4"]
    ended = marl("train", "--quiet", *flags)
    assert ended.code == 0, ended.err
    found = yaml.safe_load((tmp_path / "runs/cartpole-v1-dqn-0/config.yaml").read_text())
    assert found["env"] == "CartPole-v1" and found["env_options"]["max_steps"] == 20


@pytest.mark.parametrize("env", ["GridWorld", "CartPole-v1"])
def test_record_writes_a_page_that_plays(marl: Marl, env: str, tmp_path: Path) -> None:
    changes = {k: v for k, v in TINY.items() if k != "env_options"}
    changes |= {"env": env, "algorithm": "dqn", "timesteps": 4, "replicates": 2}
    changes |= {"env_options": {"max_steps": 5}}
    runs.train(runs.run_config(changes), tmp_path / "run", progress=False)
    ended = marl("evaluate", "run", "--episodes", 1, "--record", "episode.html")
    assert ended.code == 0 and ended.err == ""
    assert "episode.html" in ended.out
    page = (tmp_path / "episode.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert f"dqn on {env}" in page
    found = re.search(r'"captions": (\[.*?\])', page)
    assert found is not None
    start, *steps = json.loads(found[1])
    assert start == "start" and 1 <= len(steps) <= 5
    assert all(re.fullmatch(r"reward [+-]\d+\.\d\d", text) for text in steps)
    assert "data:image/" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_experiment_and_what_show_says_of_it(marl: Marl, tiny: Path, tmp_path: Path) -> None:
    plan = {"config": str(tiny), "seeds": 2, "settings": {"a": {}}, "references": ["planner"]}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    args = ["plan.yaml", "--results", "out", "--per-process", "1"]
    ended = marl("experiment", *args)
    assert ended.code == 0, ended.err
    assert {p.name for p in (tmp_path / "out/plan").iterdir()} == {
        "a-0.json", "a-1.json", "planner-0.json",
    }  # fmt: skip
    record = json.loads((tmp_path / "out/plan/a-1.json").read_text())
    assert record["command"] == "marl experiment " + " ".join(args)
    scores = [np.mean(json.loads(p.read_text())["evaluation"]["episode_return"])
              for p in sorted((tmp_path / "out/plan").glob("a-*.json"))]  # fmt: skip
    rows = {line.split()[0]: line.split() for line in ended.out.splitlines()}
    assert rows["a"][1] == "2" and float(rows["a"][2]) == pytest.approx(np.mean(scores), abs=1e-3)
    assert rows["planner"][1] == "1"
    assert marl("show", "plan", "--results", "out").out == ended.out
    before = contents(tmp_path / "out")
    assert "already holds results; pass --overwrite" in marl.fails("experiment", *args)
    assert contents(tmp_path / "out") == before
    wrong = marl.fails("experiment", *args, "--overwrite", "--resume")
    assert "pass one of them" in wrong and contents(tmp_path / "out") == before
    assert marl("experiment", *args, "--resume").code == 0
    trained = {p: t for p, t in contents(tmp_path / "out").items() if "planner" not in str(p)}
    assert trained == {p: t for p, t in before.items() if "planner" not in str(p)}
    ended = marl("experiment", *args, "--seeds", "1", "--overwrite")
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "out/plan/a-0.json").read_text())
    assert record["command"] == "marl experiment " + " ".join([*args, "--seeds", "1"])


def test_what_show_says_of_a_tuned_experiment(marl: Marl, tiny: Path, tmp_path: Path) -> None:
    grid = {"learning_rate": [1e-3, 4e-3, 1.6e-2], "seeds": 1, "rounds": 1}
    plan = {"config": str(tiny), "seeds": 2, "tuning": grid, "references": ["random"],
            "settings": {"a": {}, "b": {"dqn": {"encoder": {"hidden": [4]}}}}}  # fmt: skip
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    ended = marl("experiment", "plan.yaml", "--results", "out")
    assert ended.code == 0, ended.err
    assert len(list((tmp_path / "out/plan/tuning").iterdir())) == 6
    header, a, b, random, note = ended.out.splitlines()
    assert re.fullmatch(
        r"method +seeds +tried +chosen +at an edge +reward +parameters +steps +seconds +"
        r"return \(IQM\) +p \(Holm\)",
        header,
    )
    for line in (a, b):
        assert re.search(
            r" 2 +3 +learning rate 0\.(001|004|016) +(no|the highest|the lowest) ", line
        )
    assert sorted(line.split()[-1] == "best" for line in (a, b, random)) == [False, False, True]
    assert random.startswith("random ") and "corrected" in note
    assert marl("show", "plan", "--results", "out").out == ended.out
    again = marl("experiment", "plan.yaml", "--results", "out", "--resume")
    assert again.out == ended.out


def test_report(marl: Marl, tmp_path: Path) -> None:
    """From the results that come with the repository."""
    args = ["--threshold", "5.5", "--baseline", "dqn"]
    ended = marl("report", "small-grid-dqn", "--out", "here", *args)
    assert ended.code == 0, ended.err
    pictures = list((tmp_path / "here").glob("*.png"))
    assert len(pictures) > 1
    assert ended.out == f"report in here/report.md, with {len(pictures)} figures\n"
    text = (tmp_path / "here" / "report.md").read_text()
    assert text.startswith("# Report: small-grid-dqn\n") and "seeds at 5.5 or more" in text
    (tmp_path / "file").write_text("")
    assert "file: File exists" in marl.fails("report", "small-grid-dqn", "--out", "file")


# Kinds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader(Variant):
    """A family.

    Parameters
    ----------
    width : int
        How wide.
    """

    width: Count = 8


@dataclass(frozen=True)
class Plain(Reader, kind="plain"):
    """Nothing more."""


@dataclass(frozen=True)
class Nested(Reader, kind="nested"):
    """One within another.

    Parameters
    ----------
    memory_size : int
        How much
        it keeps.
    inner : Reader
        What is within.
    """

    memory_size: Count = 64
    inner: Reader = Plain(2)


@dataclass(frozen=True)
class Base(Config):
    """Base.

    Parameters
    ----------
    gamma, tau : float
        Between 0 and 1.

    Notes
    -----
    gamma : is not spoken of here.
    """

    gamma: Unit = 0.5
    tau: Unit = 0.5


@dataclass(frozen=True)
class Section(Base):
    """A section.

    Parameters
    ----------
    reader : Reader
        What reads.
    """

    reader: Reader = Plain(3)
    extra_reader: Reader | None = None
    tau: Unit = 0.25


@dataclass(frozen=True)
class ToyRun(Config):
    """A run."""

    env: str = ""
    algorithm: str = ""
    to_y: Section = Section()


@pytest.fixture
def toy(monkeypatch: Any) -> None:
    """Let a run have other settings, some of several kinds."""
    monkeypatch.setattr(runs, "run_config", lambda *layers: from_mapping(ToyRun, merge(*layers)))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", Section()),
        ("--to-y.reader plain", Section()),
        ("--to-y.reader nested", Section(reader=Nested())),
        ("--to-y.reader=nested --to-y.gamma 1", Section(1, reader=Nested())),
        ("--to-y.reader nested --to-y.reader plain", Section()),
        ("--to-y.reader.width 5", Section(reader=Plain(5))),
        ("--to-y.reader.memory-size 7 --to-y.reader nested", Section(reader=Nested(8, 7))),
        ("--to_y.reader nested --to_y.reader.memory_size=7", Section(reader=Nested(8, 7))),
        ("--to-y.extra-reader plain", Section(extra_reader=Plain())),
        ("--to-y.extra_reader None", Section()),
        (
            "--to-y.reader.inner.memory-size 4 --to-y.reader.inner nested --to-y.reader nested",
            Section(reader=Nested(inner=Nested(memory_size=4))),
        ),
        (
            "--to-y.reader nested --to-y.reader.inner.width 4",
            Section(reader=Nested(8, 64, Plain(4))),
        ),
    ],
)
def test_a_kind_by_flag(toy: None, flags: str, expected: Section) -> None:
    assert cli._filled(flags.split(), {}) == ToyRun(to_y=expected)


def test_a_kind_by_flag_lies_over_the_file(toy: None) -> None:
    values = {"to_y": {"reader": {"kind": "nested", "width": 4, "inner": "nested"}}}
    filled = cli._filled(["--to-y.reader.memory-size", "2"], values)
    assert filled.to_y.reader == Nested(4, 2, Nested())  # type: ignore[attr-defined]
    filled = cli._filled(["--to-y.reader", "nested"], values)
    assert filled.to_y.reader == Nested(4, 64, Nested())  # type: ignore[attr-defined]
    filled = cli._filled(["--to-y.reader", "plain"], values)
    assert filled.to_y.reader == Plain(3)  # type: ignore[attr-defined]
    values = {"to_y": {"extra_reader": "nested"}}
    assert cli._filled(["--to-y.extra-reader", "None"], values) == ToyRun()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "--to-y.reader nestd",
            ["to_y.reader 'nestd' is not known; did you mean 'nested'? (choices: plain, nested)"],
        ),
        ("--to-y.reader None", ["to_y.reader 'None' is not known"]),
        ("--to-y.reader", ["--to-y.reader: expected one argument"]),
        ("--to-y.reader.memory-size 3", ["--to-y.reader.memory-size"]),
        ("--to-y.reader nested --to-y.reader.memory 3", ["--to-y.reader.memory-size"]),
        (
            "--to-y.reader nested --to-y.reader.memory-size 0",
            ["to_y.reader.memory_size must be at least 1, got 0"],
        ),
        ("--to-y.gamma 2", ["marl: to_y.gamma must be in [0, 1], got 2.0"]),
    ],
)
def test_a_wrong_kind_is_one_line(toy: None, marl: Marl, flags: str, words: list[str]) -> None:
    line = marl.fails("train", *flags.split())
    for word in words:
        assert word in line, line


def test_help_explains_every_field_and_lists_the_kinds(toy: None, marl: Marl) -> None:
    """Also what a base class declares, and what stands in one line of the docstring with others."""
    text = re.sub(r"[│\s]+", " ", marl("train", "--help").out)
    for words in (
        "to-y options",
        "A section.",
        "--to-y.gamma FLOAT Between 0 and 1. (default: 0.5)",
        "--to-y.tau FLOAT Between 0 and 1. (default: 0.25)",
        "Nothing more.",
        "--to-y.reader {plain,nested} What reads. (default: plain)",
        "--to-y.reader.width INT How wide. (default: 3)",
        "--to-y.extra-reader {plain,nested,None} Which kind. (default: None)",
    ):
        assert words in text, text
    assert "memory-size" not in text
    text = re.sub(r"[│\s]+", " ", marl("train", "--to-y.reader", "nested", "--help").out)
    for words in (
        "One within another.",
        "--to-y.reader {plain,nested} What reads. (default: nested)",
        "--to-y.reader.memory-size INT How much it keeps. (default: 64)",
        "--to-y.reader.inner {plain,nested} What is within. (default: plain)",
        "--to-y.reader.inner.width INT How wide. (default: 2)",
    ):
        assert words in text, text


def test_one_message_from_a_file_a_flag_and_python(marl: Marl, tmp_path: Path) -> None:
    """Beside the name of the section, which Python's keyword does not know."""
    (tmp_path / "bad.yaml").write_text("dqn: {gamma: 2}")
    message = "gamma must be in [0, 1], got 2.0"
    assert marl.fails("train", "--config", "bad.yaml") == f"marl: dqn.{message}\n"
    assert marl.fails("train", "--dqn.gamma", "2") == f"marl: dqn.{message}\n"
    with pytest.raises(ValueError, match=re.escape(message)):
        runs.ALGORITHMS["dqn"][1](gamma=2)


def test_an_encoder_by_flag() -> None:
    flags = "--env TrafficJunction --algorithm qmix --qmix.encoder gru"
    config: Any = cli._filled(f"{flags} --qmix.encoder.memory-size 32".split(), {})
    assert type(config.qmix.encoder) is type(config.qmix.encoder).kinds()["gru"]
    assert (config.qmix.encoder.kind, config.qmix.encoder.memory_size) == ("gru", 32)
    assert config.qmix.encoder.memory == "gru"  # nothing of the kind before it has stayed


# What it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], ["unknown command 'trian'", "choices: train, evaluate, experiment"]),
        (["list", "worlds"], ["unrecognized arguments: worlds"]),
        (["show"], ["required: what"]),
        (["show", "nothing"], ["experiment 'nothing' is not known"]),
        (["show", "x", "--results", "nowhere"], ["nowhere: No such file or directory"]),
        (["evaluate"], ["required: folder"]),
        (["evaluate", "nowhere"], ["cannot read nowhere/config.yaml: No such file"]),
        (["evaluate", "nowhere", "--episodes", "0"], ["--episodes must be at least 1, got 0"]),
        (["evaluate", "nowhere", "--episodes", "few"], ["--episodes: invalid int value: 'few'"]),
        (["report"], ["required: experiments, --out"]),
        (["report", "small-grid-dqn"], ["required: --out"]),
        (
            ["report", "nosuch", "--out", "x"],
            ["experiment 'nosuch' is not known", "small-grid-dqn"],
        ),
        (["report", "x", "--out", "x", "--results", "nowhere"], ["nowhere: No such file"]),
        (["report", "x", "--out", "x", "--threshold", "high"], ["--threshold: invalid float"]),
        (["experiment"], ["required: experiment"]),
        (["experiment", "nosuch"], ["experiment 'nosuch' is not known", "independent-dqn"]),
        (["experiment", "no.yaml"], ["cannot read no.yaml: No such file"]),
        (["experiment", "independent-dqn", "--seeds", "0"], ["--seeds must be at least 1, got 0"]),
        (["experiment", "independent-dqn", "--jobs", "0"], ["--jobs must be at least 1, got 0"]),
        (["experiment", "x", "--per-process", "-1"], ["--per-process must be at least 1, got -1"]),
        (["train", "--resume"], ["--resume", "expected one argument"]),
        (["train", "--resume", "nowhere"], ["cannot read nowhere/config.yaml: No such file"]),
        (["train", "--resume", "x", "--seed", "3"], ["--resume takes the whole configuration"]),
        (["train", "--config", "nosuch"], ["configuration 'nosuch' is not known", "gridworld-dqn"]),
        (["train", "--config", "no.yaml"], ["cannot read no.yaml: No such file"]),
        (["train", "--env", "Gridworld"], ["environment 'Gridworld'", "did you mean 'GridWorld'"]),
        (["train", "--algorithm", "pop"], ["algorithm 'pop' is not known", "choices: dqn, vdn"]),
        (["train", "--timestep", "5"], ["--timestep", "--timesteps"]),
        (["train", "--dqn.gama", "1"], ["--dqn.gama", "--dqn.gamma"]),
        (["train", "--timesteps", "many"], ["--timesteps", "many"]),
        (["train", "--timesteps"], ["--timesteps"]),
        (["train", "--timesteps", "0"], ["timesteps must be at least 1, got 0"]),
        (["train", "--dqn.gamma", "2"], ["gamma must be in [0, 1], got 2.0"]),
        (["train", "--dqn.gamma", "high"], ["--dqn.gamma", "high"]),
        (["train", "--seed", "-1"], ["seed must be at least 0, got -1"]),
        (["train", "--device", "abacus"], ["device 'abacus' cannot be used"]),
        (["train", "--env-options.targets", "all"], ["--env-options.targets", "shared"]),
        (["train", "--env-options.grid-size", "1", "1"], ["n_targets", "must be at most 1"]),
        (["train", "--dqn.buffer-size", "8"], ["buffer_size must be at least 64 here, got 8"]),
        (["train", "--dqn.buffer-size", "9" * 13], ["not enough memory", "9" * 13]),
        (["train", "--env-options.grid-size", "9999999", "9999999"], ["not enough memory"]),
        (["train", "extra"], ["extra"]),
    ],
)
def test_one_clear_line_and_nothing_written(
    marl: Marl, args: list[str], words: list[str], tmp_path: Path
) -> None:
    line = marl.fails(*args)
    for word in words:
        assert word in line, line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("timestep: 5", ["'timestep' is not known", "did you mean 'timesteps'"]),
        ("dqn: {gama: 0.9}", ["in dqn 'gama' is not known", "did you mean 'gamma'"]),
        ("timesteps: many", ["timesteps must be of type int, got 'many'"]),
        ("dqn: {gamma: 2}", ["gamma must be in [0, 1], got 2.0"]),
        ("env: Gridworld", ["environment 'Gridworld' is not known"]),
        ("env: [GridWorld]", ["env must be a name, got ['GridWorld']"]),
        ("a: [", ["bad.yaml is not valid YAML"]),
        ("5", ["bad.yaml must hold a mapping"]),
        ("", ["bad.yaml must hold a mapping"]),
        ("env: CartPole-v1\nenv_options: {physics: {gravitas: 1}}", ["'gravitas'", "gravity"]),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--seed", "3"]])
def test_a_wrong_file(
    marl: Marl, text: str, words: list[str], flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    line = marl.fails("train", "--config", "bad.yaml", *flags)
    for word in words:
        assert word in line, line
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_an_existing_run_is_left_alone(marl: Marl, finished: Path, tiny: Path) -> None:
    before = contents(finished)
    line = marl.fails("train", "--config", tiny, "--folder", finished)
    assert f"{finished} already holds a run; resume it with `marl train --resume" in line
    assert contents(finished) == before


def test_a_folder_that_cannot_be(marl: Marl, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    line = marl.fails("train", "--config", tiny, "--folder", "file/run", "--quiet")
    assert "Not a directory" in line
    assert marl.fails("train", "--config", tiny, "--folder", "file", "--quiet")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_checkpoint(marl: Marl, finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    before = contents(folder)
    for args in (["train", "--resume", folder], ["evaluate", folder, "--record", "x.html"]):
        assert f"the checkpoint {path} is damaged" in marl.fails(*args)
    path.unlink()
    assert "there is no checkpoint at" in marl.fails("train", "--resume", folder)
    path.write_bytes(before["checkpoint.pt"])
    assert contents(folder) == before and not (tmp_path / "x.html").exists()


def test_a_checkpoint_of_another_configuration(marl: Marl, finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["dqn"]["encoder"]["hidden"] = [8, 8]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for args in (["train", "--resume", folder], ["evaluate", folder]):
        assert "belongs to another configuration or version" in marl.fails(*args)


def test_a_full_disk(marl: Marl, tiny: Path, tmp_path: Path) -> None:
    """Wherever the room runs out: one line, and what was kept before is still good."""
    for name in ("checkpoint.part", "config.yaml", "log.jsonl", "summary.json"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).symlink_to("/dev/full")
        line = marl.fails("train", "--config", tiny, "--folder", folder, "--quiet")
        if name == "config.yaml":  # an existing run, as far as anyone can tell
            assert "already holds a run" in line
            continue
        assert "No space left on device" in line
        if name != "checkpoint.part":
            with checkpoint(folder / "checkpoint.pt") as state:
                assert state["steps"] == (200 if name == "summary.json" else 0)
    ended = marl("evaluate", tmp_path / "summary", "--record", "/dev/full", "--episodes", 2)
    assert ended.code == 1 and "No space left on device" in ended.err
    assert ended.err.count("\n") == 1


def test_interrupted_and_diverged(marl: Marl, tiny: Path, monkeypatch: Any) -> None:
    def stop(error: BaseException) -> Any:
        def stopped(*args: Any, **kwargs: Any) -> None:
            raise error

        return stopped

    monkeypatch.setattr(Trainer, "_step", stop(KeyboardInterrupt()))
    line = marl.fails("train", "--config", tiny, "--quiet", "--folder", "a")
    assert "interrupted; go on with `marl train --resume" in line
    with monkeypatch.context() as patch:
        patch.setattr(cli.experiments, "run_experiment", stop(KeyboardInterrupt()))
        assert marl.fails("experiment", "independent-dqn") == "marl: interrupted\n"
    assert "a is not finished; go on with" in marl("show", "a").err
    monkeypatch.setattr(Trainer, "_step", stop(TrainingDiverged("loss of seed 4 ...")))
    assert "loss of seed 4" in marl.fails("train", "--config", tiny, "--quiet", "--folder", "b")


def test_a_fault_of_the_library_is_not_hidden(monkeypatch: Any) -> None:
    """Only what a user can cause becomes one line; a bug keeps its traceback."""

    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(runs, "shipped", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["list"])


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    """`marl list | head` closes the pipe before all is read."""
    command = [sys.executable, "-c", "from marl_lib.cli import main; main(['list'])"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1

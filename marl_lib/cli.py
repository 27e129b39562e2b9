"""The ``marl`` command: train, evaluate, experiment, report, list, show.

Every failure a user can cause ends in one line on standard error and an exit code other than 0.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from marl_lib import experiments, runs
from marl_lib.config import ConfigError, to_mapping
from marl_lib.envs import ENVS, OTHERS
from marl_lib.evaluation import summary
from marl_lib.player import player
from marl_lib.rollout import record
from marl_lib.training import EVALUATION_SEED, CheckpointError, TrainingDiverged, evaluate

USAGE = """usage: marl COMMAND [OPTIONS]

  train        train an algorithm on a world, in a folder of its own
  evaluate     judge the trained policy in a folder; --record FILE.html keeps an episode
  experiment   run settings and seeds, and write book/results
  report       write Markdown and figures from recorded experiments
  list         worlds, algorithms, configurations, experiments
  show         what a run folder or a recorded experiment came to

marl COMMAND --help tells a command's options."""


class UsageError(Exception):
    """The command line cannot be understood."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, or with 1 after one line that says what is wrong."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": _train,
        "evaluate": _evaluate,
        "experiment": _experiment,
        "report": _report,
        "list": _list,
        "show": _show,
    }
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        raise SystemExit(0 if args else 1)
    try:
        if args[0] not in commands:
            raise UsageError(f"unknown command {args[0]!r} (choices: {', '.join(commands)})")
        commands[args[0]](args[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        again = "; go on with `marl train --resume FOLDER`" if args[0] == "train" else ""
        _fail(f"interrupted{again}")
    except BrokenPipeError:  # who reads our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except MemoryError as error:
        _fail(f"not enough memory: {error}")
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
    except (UsageError, ValueError, CheckpointError, TrainingDiverged) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    print(f"marl: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(1)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UsageError(message)


def _train(args: list[str]) -> None:
    parser = _Parser(prog="marl train", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", help="configuration: a shipped name or a YAML file")
    parser.add_argument("--folder", help="where to keep the run (default runs/ENV-ALGORITHM-SEED)")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the run in FOLDER")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    own, rest = parser.parse_known_args(args)
    if own.resume:
        if rest or own.config or own.folder:
            raise UsageError("--resume takes the whole configuration from the folder")
        result, folder = runs.resume(own.resume, not own.quiet), Path(own.resume)
    else:
        if {"-h", "--help"} & set(rest):
            print(parser.format_help())
        config = _filled(rest, runs.find_config(own.config) if own.config else {})
        name = f"{config.env}-{config.algorithm}-{config.seed}".lower().replace(":", "-")
        folder = Path(own.folder or Path("runs") / name)
        result = runs.train(config, folder, not own.quiet)
    _print_summary(result.summary())
    print(f"kept in {folder}")


def _filled(args: list[str], values: dict[str, Any]) -> runs.RunConfig:
    """Return the configuration in ``values`` with the flags in ``args`` laid over it."""
    which = _Parser(add_help=False, allow_abbrev=False)
    which.add_argument("--env")
    which.add_argument("--algorithm")
    chosen = {k: v for k, v in vars(which.parse_known_args(args)[0]).items() if v is not None}
    start = runs.run_config(values, chosen)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            config = tyro.cli(type(start), prog="marl train", default=start, args=args)
    except SystemExit as stop:
        if not stop.code:
            print(shown.getvalue(), end="")
            raise
        raise UsageError(_one_line(shown.getvalue())) from None
    return runs.run_config(to_mapping(config))


def _one_line(box: str) -> str:
    """Return the message in tyro's box: its parts lie between rules, the title first."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[\u2502\u256d-\u2570]", " ", box)
    parts = [" ".join(part.split()) for part in re.split(r"[-\u2500]{4,}", plain)]
    said = [p for p in parts if p and not p.startswith(("Argument helptext", "For full helptext"))]
    message = "; ".join(said[1:] or said)
    return re.sub(r"^Error parsing \w+: (?=\w+ must be|device)", "", message)


def _evaluate(args: list[str]) -> None:
    parser = _Parser(prog="marl evaluate")
    parser.add_argument("folder", help="a run folder")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help="of the worlds")
    parser.add_argument("--record", metavar="FILE.html", help="keep an episode as a player")
    own = parser.parse_args(args)
    if own.episodes < 1:
        raise UsageError(f"--episodes must be at least 1, got {own.episodes}")
    config, learner = runs.load_learner(own.folder)
    figures = evaluate(
        runs.world_maker(config), learner.policy(), config.replicates, own.episodes, own.seed
    )
    _print_summary(
        summary(figures["episode_return"].ravel())
        | {k: float(v.mean()) for k, v in figures.items() if k != "episode_return"}
    )
    if own.record:
        _record(config, learner, own.seed, own.record)


def _record(config: runs.RunConfig, learner: Any, seed: int, path: str) -> None:
    """Write an episode of the first replicate as a page that plays on its own."""
    world = runs.world_maker(config, autoreset=False)(config.replicates)
    played = record(world, learner.policy(), [seed] * config.replicates)
    title = f"{config.algorithm} on {config.env}"
    captions = ["start"] + [f"reward {r.sum():+.2f}" for r in played.rewards]
    player(played.frames, captions, title=title).save(path)
    print(f"an episode is kept in {path}")


def _experiment(args: list[str]) -> None:
    parser = _Parser(prog="marl experiment")
    parser.add_argument("experiment", help="a shipped name (see `marl list`) or a YAML file")
    parser.add_argument("--results", default="book/results", help="default: book/results")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: the experiment's)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--per-process", type=int, help="replicates side by side in one process")
    parser.add_argument("--overwrite", action="store_true", help="replace recorded results")
    parser.add_argument("--resume", action="store_true", help="go on where a run was broken off")
    own = parser.parse_args(args)
    for name in ("seeds", "jobs", "per_process"):
        value = getattr(own, name)
        if value is not None and value < 1 and not (name == "jobs" and value == -1):
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    plain = [a for a in args if a not in ("--overwrite", "--resume")]
    paths = experiments.run_experiment(
        own.experiment,
        own.results,
        seeds=own.seeds,
        per_process=own.per_process,
        n_jobs=own.jobs,
        overwrite=own.overwrite,
        resume=own.resume,
        command=shlex.join(["marl", "experiment", *plain]),
    )
    _show_results(paths[0].parent.name, paths[0].parent.parent)


def _report(args: list[str]) -> None:
    parser = _Parser(prog="marl report")
    parser.add_argument("experiments", nargs="+", help="names of recorded experiments")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the report goes")
    parser.add_argument("--results", default=None, help="folder of recorded results")
    parser.add_argument("--threshold", type=float, help="return that counts as solved")
    parser.add_argument("--baseline", metavar="SETTING", help="what others are held against")
    own = parser.parse_args(args)
    os.environ.setdefault("MPLBACKEND", "Agg")  # figures go to files, with a screen or without
    from marl_lib.report import write_report  # brings matplotlib, which other commands do not need

    path, *figures = write_report(
        own.experiments,
        own.out,
        results=own.results,
        threshold=own.threshold,
        baseline=own.baseline,
    )
    print(f"report in {path}, with {len(figures)} figures")


def _list(args: list[str]) -> None:
    _Parser(prog="marl list").parse_args(args)
    for title, names in (
        ("worlds", [*ENVS, *(f"{prefix}NAME" for prefix in OTHERS)]),
        ("algorithms", runs.ALGORITHMS),
        ("configurations", runs.shipped()),
        ("experiments", experiments.shipped_experiments()),
    ):
        print(f"{title:<15}{', '.join(names)}")


def _show(args: list[str]) -> None:
    parser = _Parser(prog="marl show")
    parser.add_argument("what", help="a run folder, or the name of a recorded experiment")
    parser.add_argument("--results", default=None, help="folder of recorded results")
    own = parser.parse_args(args)
    folder = Path(own.what)
    if not (folder / "config.yaml").exists():
        _show_results(own.what, own.results)
        return
    print((folder / "config.yaml").read_text(), end="")
    if not (folder / "summary.json").exists():
        raise ConfigError(f"{folder} is not finished; go on with `marl train --resume {folder}`")
    _print_summary(json.loads((folder / "summary.json").read_text()))


def _show_results(name: str, folder: str | Path | None) -> None:
    results = experiments.load_results(name, folder)
    print(f"{'setting':<24}{'seeds':>6}{'IQM':>10}  95 % interval")
    for label, records in results.items():
        figures = summary(experiments.final_scores(records))
        interval = _text(figures["interval"]) if figures["interval"] else "one run"
        print(f"{label:<24}{len(records):>6}{figures['iqm']:>10.3f}  {interval}")


def _print_summary(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        print(f"{name:<20}{_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(v) for v in value) + "]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()

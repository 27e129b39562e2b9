"""The ``marl`` command: train, evaluate, experiment, report, list, show.

Every failure a user can cause ends in one line on standard error and an exit code other than 0.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import shlex
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from marl_lib import experiments, records, runs
from marl_lib.checkpoint import CheckpointError
from marl_lib.config import ConfigError, Variant, to_mapping
from marl_lib.envs import ENVS, OTHERS
from marl_lib.evaluation import summary
from marl_lib.plans import shipped_experiments
from marl_lib.player import player
from marl_lib.rollout import record
from marl_lib.tables import Row, methods_table
from marl_lib.training import EVALUATION_SEED, TrainingDiverged, evaluate

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
    """Return the configuration in ``values`` with the flags in ``args`` laid over it.

    World, algorithm and kinds come first, since they say which other flags there are.
    """
    start = runs.run_config(values, _given(args, ["env", "algorithm"]))
    seen: dict[str, tuple[str, ...]] = {}
    while new := {path: kinds for path, kinds in _variants(start) if path not in seen}:
        seen |= new  # another kind may have fields that are variants themselves
        given = _given(args, new)
        for path in filter(given.__contains__, new):
            none = given[path] == "None" and "None" in new[path]
            layer: Any = None if none else {"kind": given[path]}
            for section in reversed(path.split(".")):
                layer = {section: layer}
            start = runs.run_config(to_mapping(start), layer)
    form, shown = _form(start), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            form = tyro.cli(type(form), prog="marl train", default=form, args=args)
    except SystemExit as stop:
        if not stop.code:
            print(shown.getvalue(), end="")
            raise
        raise UsageError(_one_line(shown.getvalue())) from None
    return runs.run_config(_answers(to_mapping(form)))


def _given(args: list[str], names: Iterable[str]) -> dict[str, str]:
    """Return the values of those flags, by name, that are among the arguments."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name)
    # Like tyro, take a flag with either stroke.
    spelt = [re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), a) for a in args]
    return vars(parser.parse_known_args(spelt)[0])


def _kinds(hint: Any) -> tuple[str, ...]:
    """Return the kinds that a field of this type can be of, none if it is no variant."""
    types = (hint, *typing.get_args(hint))
    families = [t for t in types if isinstance(t, type) and issubclass(t, Variant)]
    none = ("None",) if families and type(None) in types else ()
    return (*(kind for family in families for kind in family.kinds()), *none)


def _variants(config: Any, where: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each field of a configuration that is a variant, as a path, and its kinds."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        if kinds := _kinds(hints[field.name]):
            yield where + field.name, kinds
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _variants(value, f"{where}{field.name}.")


def _form(config: Any, kinds: tuple[str, ...] = (), meaning: str = "") -> Any:
    """Return a configuration as tyro is to ask for it.

    It has the same fields, each with its meaning, but of types without rules: what is wrong with a
    value is said by the configuration that is made of it. A variant is its kind beside the fields
    of that kind, where tyro would make commands of the kinds.
    """
    hints, words = typing.get_type_hints(type(config)), meanings(type(config))
    fields, values = [], []
    if kinds:  # without a name of its own, the flag has that of the section
        asked = tyro.conf.arg(name="", help=meaning or "Which kind.")
        fields = [("kind", Annotated[Literal[kinds], asked])]
        values = ["None" if config is None else config.kind]
    for field in () if config is None else dataclasses.fields(config):
        name, value, hint = field.name, getattr(config, field.name), hints[field.name]
        if dataclasses.is_dataclass(value) or _kinds(hint):
            value = _form(value, _kinds(hint), words.get(name, ""))
            about = inspect.cleandoc(value.__doc__ or "").split("\n\n")[0]
            hint = Annotated[type(value), tyro.conf.arg(help=about)]
        elif words.get(name):
            hint = Annotated[hint, tyro.conf.arg(help=words[name])]
        fields.append((name, hint))
        values.append(value)
    doc = {"__doc__": "No options." if config is None else type(config).__doc__}
    return dataclasses.make_dataclass(type(config).__name__, fields, namespace=doc)(*values)


def _answers(form: dict[str, Any]) -> dict[str, Any]:
    """Return what a form was filled with, as the configuration takes it."""
    values = dict(form)
    for key, value in form.items():
        if isinstance(value, dict):
            values[key] = None if value == {"kind": "None"} else _answers(value)
    return values


def meanings(cls: type) -> dict[str, str]:
    """Return what the docstrings of a dataclass and its bases say of each parameter."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n\w[^\n]*\n---|\Z)", text, re.M | re.S)
        entries = r"^(\w+(?:, \w+)*)(?: :.*)?((?:\n+ +.*)*)"
        for names, words in re.findall(entries, section[1] if section else "", re.M):
            found |= dict.fromkeys(names.split(", "), " ".join(words.split()))
    return found


def _one_line(box: str) -> str:
    """Return the message in tyro's box: its parts lie between rules, the title first."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[\u2502\u256d-\u2570]", " ", box)
    parts = [" ".join(part.split()) for part in re.split(r"[-\u2500]{4,}", plain)]
    said = [p for p in parts if p and not p.startswith(("Argument helptext", "For full helptext"))]
    return "; ".join(said[1:] or said)


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
        ("experiments", shipped_experiments()),
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
    results, tried = records.load_results(name, folder), records.load_tuning(name, folder)
    if tried:
        rows = methods_table(results, tried)
        _print_table(rows)
        if "p (Holm)" in rows[0]:
            print("p: against the best, of two tests the larger, corrected for all comparisons")
        return
    print(f"{'setting':<24}{'seeds':>6}{'IQM':>10}  95 % interval")
    for label, found in results.items():
        figures = summary(records.final_scores(found))
        interval = _text(figures["interval"]) if figures["interval"] else "one run"
        print(f"{label:<24}{len(found):>6}{figures['iqm']:>10.3f}  {interval}")


def _print_table(rows: list[Row]) -> None:
    """Print rows with the names of their columns above, each column as wide as it must be."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells in lines:
        print("  ".join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=True)).rstrip())


def _print_summary(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        print(f"{name:<20}{_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(v) for v in value) + "]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()

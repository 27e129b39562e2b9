"""Reports: from recorded runs to Markdown and figures, every number read from their files.

What is recorded decides what a report holds: a section without data is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import yaml
from matplotlib.axes import Axes

from marl_lib import evaluation, plotting
from marl_lib.config import ConfigError, choice, require
from marl_lib.evaluation import iqm
from marl_lib.experiments import final_scores, find_experiment, load_results, shipped_experiments
from marl_lib.interpret import agreement, shares

Records = list[dict[str, Any]]

# At or above this mean return over 100 episodes a world counts as solved.
THRESHOLDS = {"CartPole-v1": 475.0, "Acrobot-v1": -100.0, "MountainCar-v0": -110.0}
FEATURES = {
    "CartPole-v1": ("position", "velocity", "angle", "angular velocity"),
    "Acrobot-v1": ("cos θ₁", "sin θ₁", "cos θ₂", "sin θ₂", "velocity of θ₁", "velocity of θ₂"),
    "MountainCar-v0": ("position", "velocity"),
}
STABILITY = ("policy_loss", "value_loss", "entropy", "approx_kl", "explained_variance")
MEASURES = {"gradient_input": "gradient × input"}  # where the name is not good enough to show
NOT_SETTINGS = ("seed", "replicates", "threads", "device")  # of a configuration
TOLERANCE = 0.05  # of the range of an experiment's curves, within which a curve is at rest
TOGETHER = 6  # curves that one figure shows legibly
MOST_FEATURES = 16  # bars of one panel


@dataclass(frozen=True)
class Study:
    """The runs of one experiment in one world.

    Attributes
    ----------
    name, env : str
    runs : dict of label -> records
        Settings that were trained; the first is what the others are held against.
    references : dict of label -> float
        Mean return of policies that did not learn.
    threshold : float or None
    """

    name: str
    env: str
    runs: dict[str, Records]
    references: dict[str, float] = field(default_factory=dict)
    threshold: float | None = None

    @property
    def plain(self) -> dict[str, Records]:
        """The settings that are no point of a sweep."""
        return {label: r for label, r in self.runs.items() if "=" not in label}

    @property
    def baseline(self) -> str:
        """The setting that the others are held against."""
        return next(iter(self.plain or self.runs))

    @property
    def several(self) -> dict[str, np.ndarray]:
        """Final scores (runs,) of the settings with more than one seed, the only ones compared."""
        return {label: final_scores(r) for label, r in self.runs.items() if len(r) > 1}


class Page:
    """The Markdown of a report and the figures beside it."""

    def __init__(self, folder: Path):
        self.folder, self.lines, self.figures = folder, list[str](), list[Path]()

    def add(self, *lines: str) -> None:
        """Add paragraphs, headings and the like, an empty line after each."""
        for line in lines:
            self.lines += [line, ""]

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)
    ) -> None:
        """Add a table; numbers, which are in all columns but those of ``text``, stand right."""
        ruler = ["---" if i in text else "---:" for i in range(len(header))]
        self.add("\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows)))

    def figure(self, name: str, axes: Axes | np.ndarray, alt: str) -> None:
        """Keep a figure as ``name``.png and show it."""
        figure: Any = (axes[0] if isinstance(axes, np.ndarray) else axes).figure
        path = self.folder / f"{name}.png"
        figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        self.figures.append(path)
        self.add(f"![{alt}]({path.name})")


def write_report(
    names: Sequence[str],
    out: str | Path,
    *,
    results: str | Path | None = None,
    threshold: float | None = None,
    baseline: str | None = None,
) -> list[Path]:
    """Write ``report.md`` and its figures from the recorded runs of some experiments.

    Parameters
    ----------
    names : list of str
        Recorded experiments.
    out : path
        The folder of the report.
    results : path or None
        The folder of recorded results; None for the book's.
    threshold : float or None
        Mean return that counts as solved, where all experiments are in one world; None for the
        world's own, see ``THRESHOLDS``.
    baseline : str or None
        The setting that others are held against; None for the first of the experiment.

    Returns
    -------
    list of path
        ``report.md``, then the figures.

    Raises
    ------
    ConfigError
        If an experiment was not recorded, or the threshold or the baseline goes with none.
    """
    studies = [s for name in dict.fromkeys(names) for s in read(name, results, baseline)]
    found = {s.env for s in studies}
    if baseline is not None:
        known = dict.fromkeys(label for s in studies for label in s.runs)
        choice("baseline", baseline, known)
    if threshold is not None:
        require(len(found) == 1, "--threshold", threshold, f"for one world, not {sorted(found)}")
    studies = [_with_threshold(s, threshold) for s in studies]
    page = Page(Path(out))
    page.folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(cast(Any, plotting.STYLE)):
        _title(page, studies)
        for study in studies:
            page.add(f"## {study.name}: {study.env}")
            for section in SECTIONS:
                section(page, study)
        _across(page, studies)
    path = page.folder / "report.md"
    path.write_text("\n".join(page.lines).rstrip() + "\n", encoding="utf-8")
    return [path, *page.figures]


# Reading ------------------------------------------------------------------------------------------


def read(name: str, results: str | Path | None = None, baseline: str | None = None) -> list[Study]:
    """Return the runs of an experiment, one study for each of its worlds.

    Settings stand as in the plan of an experiment that ships, else by name, a sweep at the end.
    """
    loaded = load_results(name, results)
    planned: list[str] = []
    if name in shipped_experiments():
        planned = [k for k in find_experiment(name)[1].all_settings() if k in loaded]
    order = planned + sorted(loaded, key=lambda label: ("=" in label, label))
    if baseline in loaded:
        order.insert(0, baseline)
    envs = dict.fromkeys(loaded[label][0]["env"] for label in order)
    studies = []
    for env in envs:
        here = {k: loaded[k] for k in dict.fromkeys(order) if loaded[k][0]["env"] == env}
        trained = {label: r for label, r in here.items() if "curve" in r[0]}
        rest = {k: float(final_scores(r).mean()) for k, r in here.items() if k not in trained}
        if trained:
            studies.append(Study(name, env, trained, rest))
    if not studies:
        raise ConfigError(f"{name} holds no training run, only {', '.join(loaded)}")
    return studies


def _with_threshold(study: Study, threshold: float | None) -> Study:
    own = THRESHOLDS.get(study.env) if threshold is None else threshold
    return Study(study.name, study.env, study.runs, study.references, own)


def over_training(records: Records, part: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (points,) and a figure (runs, points), at the points that all runs have."""
    steps = [r[part]["steps"] for r in records]
    common = sorted(set(steps[0]).intersection(*steps))
    rows = [
        [r[part][name][at.index(s)] for s in common] for r, at in zip(records, steps, strict=True)
    ]
    return np.array(common), np.array(rows)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration as one mapping of dotted keys, without seeds and machine."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif prefix or key not in NOT_SETTINGS:
            found[prefix + key] = value
    return found


def differences(config: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which two configurations differ, with both values."""
    a, b = flat(config), flat(other)
    pairs = {k: (a.get(k, "unset"), b.get(k, "unset")) for k in dict.fromkeys([*a, *b])}
    return {k: (x, y) for k, (x, y) in pairs.items() if x != y}


# Words --------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return a number with three figures or all its whole ones."""
    if np.isinf(value):
        return "not reached"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def _range(values: np.ndarray) -> str:
    low, high = number(values.min()), number(values.max())
    return low if low == high else f"{low} to {high}"


def interval(values: np.ndarray, statistic: Callable[..., Any] = iqm, spec: str = "") -> str:
    """Return a statistic of (runs,) with its interval, as far as there are runs for one."""
    if np.isnan(values).any():
        return "—"
    if len(values) == 1:
        return number(float(values[0]))
    return format(evaluation.bootstrap_interval(values, statistic), spec).replace("-", "−")


def p_value(p: float) -> str:
    """Return a p-value as it is usually written."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def words(name: str) -> str:
    """Return a name of code as words."""
    return MEASURES.get(name, name.replace("_", " "))


def listed(items: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _seeds(records: Records) -> str:
    seeds = [r["seed"] for r in records]
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _slug(study: Study, what: str) -> str:
    return f"{study.name}-{study.env}-{what}".lower().replace(":", "-").replace("/", "-")


def _groups(study: Study, labels: Iterable[str]) -> list[list[str]]:
    """Return the labels in groups for one figure each, the baseline in all of them."""
    rest = [label for label in labels if label != study.baseline]
    first = [study.baseline] if study.baseline in labels else []
    size = TOGETHER - len(first)
    return [first + rest[i : i + size] for i in range(0, max(1, len(rest)), size)]


def _numbered(what: str, index: int) -> str:
    return what if index == 0 else f"{what}-{index + 1}"


# Sections of one study ----------------------------------------------------------------------------


def _title(page: Page, studies: Sequence[Study]) -> None:
    page.add(
        f"# Report: {listed(list(dict.fromkeys(s.name for s in studies)))}",
        "Every number is computed from the recorded runs. A score is a seed's mean return over the "
        "episodes of its last evaluation, played greedily and in the same worlds by every seed. "
        "Numbers in brackets are 95 % intervals of the percentile bootstrap over seeds; IQM is the "
        "mean of the middle half of the seeds.",
    )


def _what_was_run(page: Page, study: Study) -> None:
    records = [r for several in study.runs.values() for r in several]

    def made(key: str) -> str:
        return listed(list(dict.fromkeys(str(r[key]) for r in records if key in r)) or ["unknown"])

    versions = dict.fromkeys(json.dumps(r.get("versions", {})) for r in records)
    packages = [", ".join(f"{k} {v}" for k, v in json.loads(text).items()) for text in versions]
    changed_too = " (+: with changes that were not committed)" if "+" in made("commit") else ""
    page.add("### What was run")
    page.add(
        f"- Command: `{made('command')}`\n- Commit: {made('commit')}{changed_too}\n"
        f"- Date: {made('date')}\n"
        f"- Machine: {made('machine')}, device {made('device')}\n- Versions: {'; '.join(packages)}"
    )
    leaders: dict[str, str] = {}  # the first setting of each algorithm
    rows = []
    for label, several in study.runs.items():
        config = several[0]["config"]
        leader = leaders.setdefault(config["algorithm"], label)
        other = study.runs[leader][0]["config"]
        changed = [f"{k} = {a}, not {b}" for k, (a, b) in differences(config, other).items()]
        steps = several[0]["curve"]["steps"][-1]
        told = f"as {leader} but {'; '.join(changed)}" if changed else f"as {leader}"
        told = "in full below" if leader == label else told
        rows.append([label, config["algorithm"], _seeds(several), f"{steps:,}", told])
    header = ["setting", "algorithm", "seeds", "steps", "configuration"]
    page.table(header, rows, text=(0, 1, 4))
    for label in leaders.values():
        config = {k: v for k, v in study.runs[label][0]["config"].items() if k not in NOT_SETTINGS}
        text = yaml.safe_dump(config, sort_keys=False).rstrip()
        page.add(f"<details><summary>Configuration of {label}</summary>")
        page.add(f"```yaml\n{text}\n```", "</details>")


def _return(page: Page, study: Study) -> None:
    page.add("### Return")
    threshold, header = study.threshold, ["setting", "seeds", "mean", "IQM", "lowest seed"]
    if threshold is not None:
        header.append(f"seeds at {number(threshold)} or more")
    rows = []
    for label, records in study.runs.items():
        scores = final_scores(records)
        row = [label, str(len(scores)), interval(scores, np.mean), interval(scores)]
        row.append(number(scores.min()))
        if threshold is not None:
            row.append(f"{int((scores >= threshold).sum())} of {len(scores)}")
        rows.append(row)
    blank = [""] * (len(header) - 3)
    rows += [[label, "", number(v), *blank] for label, v in study.references.items()]
    page.table(header, rows)
    episodes = {len(r["evaluation"]["episode_return"]) for rs in study.runs.values() for r in rs}
    page.add(f"Episodes of each seed's last evaluation: {listed([*map(str, sorted(episodes))])}.")
    _other_figures(page, study)
    compared = {k: v for k, v in study.several.items() if k in study.plain}
    for i, group in enumerate(_groups(study, compared) if compared else []):
        ax = plotting.interval_plot({k: compared[k] for k in group}, references=_lines(study))
        said = listed([f"{k} {number(iqm(compared[k]))}" for k in group])
        alt = f"Final return of each seed, IQM and interval: {said}"
        page.figure(_slug(study, _numbered("return", i)), ax, alt)


def _lines(study: Study) -> dict[str, float]:
    """Return what the return is compared with: the threshold and the references."""
    own = {} if study.threshold is None else {"threshold": study.threshold}
    return own | study.references


def _other_figures(page: Page, study: Study) -> None:
    """Add what the world measures beside the return."""
    names = dict.fromkeys(k for rs in study.runs.values() for k in rs[0]["evaluation"])
    others = [name for name in names if name not in ("episode_return", "episode_length")]
    if others:
        page.add("Means of what else the world measures, in the last evaluation:")
        page.table(
            ["setting", *map(words, others)],
            [
                [label, *(interval(final_scores(records, n), np.mean) for n in others)]
                for label, records in study.runs.items()
            ],
        )


def _learning_curves(page: Page, study: Study) -> None:
    curves = {k: over_training(r, "curve", "episode_return") for k, r in study.plain.items()}
    if not curves:
        return
    page.add("### Learning curves", "The greedy policy's return: IQM over seeds, pointwise band.")
    for i, group in enumerate(_groups(study, curves)):
        ax = plotting.learning_curve(
            {k: curves[k] for k in group}, references=_lines(study), fit_from=0.2
        )
        ends = listed([f"{k} ends at {number(float(iqm(curves[k][1][:, -1])))}" for k in group])
        alt = f"Return over environment steps: {ends}"
        page.figure(_slug(study, _numbered("learning", i)), ax, alt)


def _steps_to_threshold(page: Page, study: Study) -> None:
    if study.threshold is None:
        return
    page.add("### Steps to the threshold")
    page.add(
        f"Environment steps at the first evaluation with a mean return of {number(study.threshold)}"
        " or more; the median counts a seed that never got there as slower than all others."
    )
    rows = []
    for label, records in study.runs.items():
        steps, table = over_training(records, "curve", "episode_return")
        found = evaluation.steps_to_threshold(steps, table, study.threshold)
        reached, every = int(np.isfinite(found).sum()), int(np.median(np.diff(steps)))
        spread = _range(found) if reached else "—"
        middle = number(float(np.median(found)))
        rows.append([label, f"{reached} of {len(found)}", middle, spread, f"{every:,}"])
    header = ["setting", "seeds that reached it", "median", "range", "evaluated every"]
    page.table(header, rows)


def _convergence(page: Page, study: Study) -> None:
    curves = {k: over_training(r, "curve", "episode_return") for k, r in study.runs.items()}
    curves = {k: (steps, table) for k, (steps, table) in curves.items() if len(steps) > 3}
    span = [f(table) for _, table in curves.values() for f in (np.min, np.max)]
    if not curves or max(span) == min(span):
        return
    tolerance = TOLERANCE * (max(span) - min(span))
    page.add(
        "### Convergence",
        "A curve has converged at the step from which it never again strays more than "
        f"{number(tolerance)} ({100 * TOLERANCE:g} % of the range of all curves here) from its "
        "final level, the mean of its last quarter, and if that holds for this quarter at least. "
        "Slope: of the last quarter, in return per 10,000 steps. Oscillation: standard deviation "
        "of a converged curve from that step on. Medians over seeds; the level and the mean height "
        "of the whole curve (its area over the steps) are means over seeds.",
    )
    rows = []
    for label, (steps, table) in curves.items():
        found = evaluation.convergence(steps, table, tolerance)
        ok = found.converged
        rows.append(
            [
                label,
                interval(found.level, np.mean),
                f"{int(ok.sum())} of {len(ok)}",
                number(float(np.median(found.step[ok]))) if ok.any() else "—",
                number(1e4 * float(np.median(found.slope))),
                number(float(np.median(found.oscillation[ok]))) if ok.any() else "—",
                interval(evaluation.area_under_curve(steps, table), np.mean),
            ]
        )
    header = ["setting", "final level", "converged", "at step", "slope", "oscillation"]
    page.table([*header, "mean height"], rows)


def _stability(page: Page, study: Study) -> None:
    runs = {k: r for k, r in study.plain.items() if r[0].get("diagnostics", {}).get("steps")}
    if not runs:
        return
    first = next(iter(runs.values()))[0]["diagnostics"]
    names = [n for n in STABILITY if n in first] or [n for n in first if n != "steps"]
    runs = {k: r for k, r in runs.items() if set(names) <= set(r[0]["diagnostics"])}
    page.add(
        "### Stability",
        "What the learner reported, means over the updates between evaluations (IQM over seeds, "
        "pointwise band), and in the table its last values (mean over seeds). How far the return "
        "itself still moves stands under Convergence.",
    )
    curves = {n: {k: over_training(r, "diagnostics", n) for k, r in runs.items()} for n in names}
    for i, group in enumerate(_groups(study, runs)):
        axes = plotting.small_multiples({words(n): {k: curves[n][k] for k in group} for n in names})
        alt = f"{listed([words(n) for n in names])} over training, for {listed(group)}".capitalize()
        page.figure(_slug(study, _numbered("stability", i)), axes, alt)
    page.table(
        ["setting", *map(words, names)],
        [[k, *(interval(curves[n][k][1][:, -1], np.mean) for n in names)] for k in runs],
    )


def _ablations(page: Page, study: Study) -> None:
    scores = {k: v for k, v in study.several.items() if k in study.plain}
    if len(scores) < 2 or study.baseline not in scores:
        return
    page.add(
        f"### Settings beside {study.baseline}",
        f"Each setting less {study.baseline}. Probability of improvement: that a seed of the "
        "setting scores higher than one of it. p-values are two-sided; the corrected ones account, "
        "by Holm's method, for all comparisons in their column.",
    )
    pairs = evaluation.significance(scores, study.baseline)
    header = ["setting", "difference of IQMs", "probability of improvement"]
    header += ["Welch p", "corrected", "Mann–Whitney p", "corrected"]
    rows = []
    for pair in pairs:
        c = pair.comparison
        p_values = (c.welch_p, pair.welch_holm, c.mann_whitney_p, pair.mann_whitney_holm)
        difference = str(c.iqm_difference).replace("-", "−")
        improvement = f"{c.probability_of_improvement:.2f}"
        rows.append([pair.first, difference, improvement, *map(p_value, p_values)])
    page.table(header, rows)
    clear = [p for p in pairs if max(p.welch_holm, p.mann_whitney_holm) < 0.05]
    ends = {True: "higher", False: "lower"}
    said = [f"{p.first} ({ends[p.comparison.iqm_difference.estimate > 0]})" for p in clear]
    page.add(
        f"By both tests, corrected at 5 %, {listed(said)} "
        f"{'differs' if len(said) == 1 else 'differ'} from {study.baseline}."
        if said
        else "By both tests, corrected at 5 %, none of them can be told from it."
    )


def _sensitivity(page: Page, study: Study) -> None:
    keys: dict[str, dict[str, str]] = {}  # of the sweep -> value -> label
    for label in study.runs:
        key, equals, value = label.partition("=")
        if equals:
            keys.setdefault(key, {})[value] = label
    if not keys:
        return
    page.add("### Sensitivity", "One setting is changed, all others stay as they are.")
    for key, values in keys.items():
        scores = {v: final_scores(study.runs[label]) for v, label in values.items()}
        default = _default(study, values)
        if default is not None:
            scores.setdefault(default, final_scores(study.runs[study.baseline]))
        scores = {v: scores[v] for v in sorted(scores, key=_in_order)}
        middles = {v: float(iqm(s)) for v, s in scores.items()}
        best, worst = (f(middles, key=lambda v: middles[v]) for f in (max, min))
        ax = plotting.sensitivity_plot(scores, default=default, xlabel=words(key))
        said = listed([f"{v}: {number(m)}" for v, m in middles.items()])
        page.figure(_slug(study, f"sensitivity-{key}"), ax, f"Return by {words(key)}; IQM {said}")
        page.add(
            f"Of {len(scores)} values of {words(key)}, {best} does best "
            f"(IQM {number(middles[best])}) and {worst} worst ({number(middles[worst])})."
        )


def _default(study: Study, values: dict[str, str]) -> str | None:
    """Return the baseline's value of a swept setting, where it differs in that alone."""
    if not study.plain:
        return None
    base = study.plain[study.baseline][0]["config"]
    for value, label in values.items():
        changed = differences(study.runs[label][0]["config"], base)
        if len(changed) == 1:
            own, usual = next(iter(changed.values()))
            if str(own) == value:
                return str(usual)
    return None


def _in_order(value: str) -> tuple[bool, float, str]:
    """Sort numbers by size, before words."""
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value


def _other_worlds(page: Page, study: Study) -> None:
    runs = {k: r for k, r in study.runs.items() if all(x.get("tests") for x in r)}
    names = list(dict.fromkeys(n for r in runs.values() for n in r[0]["tests"]))
    runs = {k: r for k, r in runs.items() if all(set(names) <= set(x["tests"]) for x in r)}
    if not runs:
        return
    page.add(
        "### Other worlds",
        "The trained policies in worlds they were not trained in (other physics, say), without "
        "learning there: IQM over seeds of the return, then what a seed gains or loses against the "
        "world of its training.",
    )
    own = {k: final_scores(r) for k, r in runs.items()}
    there = {
        k: np.array([[np.mean(x["tests"][n]["episode_return"]) for n in names] for x in r])
        for k, r in runs.items()
    }
    table = np.array([[iqm(own[k]), *iqm(there[k], axis=0)] for k in runs])
    change = np.array([iqm(there[k] - own[k][:, None], axis=0) for k in runs])
    fmt = ".0f" if np.abs(table).max() >= 100 else ".1f"
    shown = [words(n) for n in names]
    ax = plotting.heatmap(
        table, rows=list(runs), columns=["as trained", *shown], label="return (IQM)", fmt=fmt
    )
    alt = f"Return of {listed(list(runs))} as trained and in {listed(shown)}"
    page.figure(_slug(study, "worlds"), ax, alt)
    ax = plotting.heatmap(
        change, rows=list(runs), columns=shown, label="change (IQM)", centre=0.0, fmt=fmt
    )
    page.figure(_slug(study, "worlds-change"), ax, f"Change of the return in {listed(shown)}")
    page.table(
        ["setting", *shown],
        [[k, *(interval(there[k][:, j] - own[k]) for j in range(len(names)))] for k in runs],
    )


def features(record: dict[str, Any], count: int) -> list[str]:
    """Return what the numbers of an observation are, as far as it is known."""
    known = FEATURES.get(record["env"], ())
    options = record["config"].get("env_options", {})
    if options.get("velocities") is False:
        known = tuple(name for name in known if "velocity" not in name)
    if (past := options.get("history", 1)) > 1:  # blocks, oldest first, each with its flag
        ago = [f"t − {k}" if k else "t" for k in reversed(range(past))]
        known = tuple(f"{name}, {when}" for when in ago for name in ("flag", *known))
    return list(known) if len(known) == count else [f"feature {i + 1}" for i in range(count)]


def _importance(page: Page, study: Study) -> None:
    runs = {k: r for k, r in study.plain.items() if all(x.get("importance") for x in r)}
    if not runs:
        return
    page.add(
        "### Feature importance",
        "How much each policy rests on each feature of the observation, in the states it meets: "
        "shares by every measure (mean over seeds with interval; the dashed line is an equal "
        "share), and how far two measures put the features in the same order (Spearman's rank "
        "correlation, mean over seeds). Attention says where a network looks, not what it does "
        "with what it finds: by itself it is no explanation.",
    )
    for label, records in runs.items():
        _importance_of(page, study, label, records)


def _importance_of(page: Page, study: Study, label: str, records: Records) -> None:
    measures = [m for m in records[0]["importance"] if all(m in r["importance"] for r in records)]
    tables = {m: shares([r["importance"][m] for r in records]) for m in measures}
    names = features(records[0], tables[measures[0]].shape[1])
    mean_share = np.mean([t.mean(0) for t in tables.values()], axis=0)
    most = np.sort(np.argsort(-mean_share, kind="stable")[:MOST_FEATURES])
    axes = plotting.importance_plot(
        {words(m): t[:, most] for m, t in tables.items()}, [names[i] for i in most]
    )
    first = {m: names[int(t.mean(0).argmax())] for m, t in tables.items()}
    alt = f"Importance of {listed([names[i] for i in most])} for {label}: "
    alt += ", ".join(f"{words(m)} puts {first[m]} first" for m in measures)
    page.add(f"#### {label}")
    if len(most) < len(names):
        page.add(f"The {len(most)} features of {len(names)} with the largest shares.")
    page.figure(_slug(study, f"importance-{label}"), axes, alt)
    each = np.array([agreement({m: r["importance"][m] for m in measures}) for r in records])
    known = ~np.isnan(each).all(0)
    mean = np.full(each.shape[1:], np.nan)
    mean[known] = np.nanmean(each[:, known], axis=0)
    said = [f"{words(m)}: {first[m]} ({100 * tables[m].mean(0).max():.0f} %)" for m in measures]
    page.add(f"Most important by {'; '.join(said)}.")
    if len(measures) > 1 and known.any():
        shown = [words(m) for m in measures]
        narrow = ["\n".join(name.rsplit(" ", 1)) for name in shown]
        ax = plotting.heatmap(mean, rows=shown, columns=narrow, centre=0.0, limits=(-1, 1),
                              label="rank correlation")  # fmt: skip
        alt = f"Rank correlations between the measures of importance for {label}"
        page.figure(_slug(study, f"agreement-{label}"), ax, alt)
        _agreement_in_words(page, measures, each)


def _agreement_in_words(page: Page, measures: list[str], each: np.ndarray) -> None:
    """Say how far attention orders the features as those measures do that see the policy change."""
    looks = [i for i, m in enumerate(measures) if m.startswith("attention")][:1]
    acts = [i for i, m in enumerate(measures) if not m.startswith("attention")]
    others = listed([words(measures[i]) for i in acts])

    def mean_of(pairs: list[tuple[int, int]]) -> str:
        return interval(
            np.array([[m[pair] for pair in pairs] for m in each]).mean(1), np.mean, "z.2f"
        )

    among = [(i, j) for i in acts for j in acts if i < j]
    said = f"{others} order the features alike to {mean_of(among)}"
    if looks:
        across = mean_of([(looks[0], j) for j in acts])
        said += f", attention and these to {across}"
    page.add(f"Here {said} (mean rank correlation; 1 is the same order, 0 none in common).")


def _compute(page: Page, study: Study) -> None:
    runs = {k: r for k, r in study.runs.items() if all("wall_clock_seconds" in x for x in r)}
    if not runs:
        return
    page.add(
        "### Compute",
        "Wall-clock time of training, evaluations on the way included. Where several seeds trained "
        "side by side in one process, each is given its part of the time.",
    )
    seconds = {
        k: np.array([x["wall_clock_seconds"] / x["replicates_in_process"] for x in r])
        for k, r in runs.items()
    }
    per_step = {k: np.median(seconds[k]) / r[0]["curve"]["steps"][-1] for k, r in runs.items()}
    base = per_step.get(study.baseline)
    rows = []
    for k, records in runs.items():
        side = sorted({r["replicates_in_process"] for r in records})
        ratio = f"{per_step[k] / base:.2g}" if base else "—"
        spread = _range(seconds[k])
        row = [k, listed([str(n) for n in side]), number(float(np.median(seconds[k]))), spread]
        rows.append([*row, number(float(1 / per_step[k])), ratio])
    header = ["setting", "seeds in a process", "seconds a seed (median)", "range"]
    page.table([*header, "steps a second", f"time a step, {study.baseline} = 1"], rows)


SECTIONS: tuple[Callable[[Page, Study], None], ...] = (
    _what_was_run,
    _return,
    _learning_curves,
    _steps_to_threshold,
    _convergence,
    _stability,
    _ablations,
    _sensitivity,
    _other_worlds,
    _importance,
    _compute,
)


# Several studies ----------------------------------------------------------------------------------


def _lowest(study: Study) -> tuple[float, str]:
    """Return the return that counts as nothing, and what it is."""
    if "random" in study.references:
        return study.references["random"], "random play"
    start = [r["curve"]["episode_return"][0] for rs in study.runs.values() for r in rs]
    return float(np.mean(start)), "the untrained networks"


def _across(page: Page, studies: Sequence[Study]) -> None:
    """Add how the settings that several worlds have in common do over all of them."""
    solved = [(s, *_lowest(s), s.threshold) for s in studies if s.threshold is not None]
    solved = [(s, low, what, high) for s, low, what, high in solved if low < high]
    if len({s.env for s, *_ in solved}) < 2:
        return
    labels = [k for k in solved[0][0].several if all(k in s.several for s, *_ in solved)]
    if not labels:
        return
    names = [s.env for s, *_ in solved]
    ends = [f"{s.env} from {number(a)} ({what}) to {number(b)}" for s, a, what, b in solved]
    page.add(
        "## Across environments",
        "Settings that all these worlds have in common, as they are configured for each. Scores "
        f"are scaled so that 0 to 1 is {listed(ends)}. The median is that of the worlds' means; "
        "the optimality gap is how far scores fall short of 1 on average, so less is better.",
    )
    scores = {}
    for label in labels:
        n = min(len(s.several[label]) for s, *_ in solved)  # the seeds that all worlds have
        columns = [(s.several[label][:n] - low) / (high - low) for s, low, _, high in solved]
        scores[label] = np.column_stack(columns)
    middles = np.array([iqm(table, axis=0) for table in scores.values()])
    ax = plotting.heatmap(middles, rows=labels, columns=names, label="scaled score (IQM)",
                          limits=(min(0.0, middles.min()), max(1.0, middles.max())))  # fmt: skip
    page.figure("across-environments", ax, f"Scaled scores of {listed(labels)} in {listed(names)}")
    rows = []
    for label, table in scores.items():
        found = evaluation.aggregates(table)
        each = [interval(column, spec="z.2f") for column in table.T]
        rows.append([label, *each, *(f"{v:z.2f}".replace("-", "−") for v in found.values())])
    page.table(["setting", *names, "mean", "median", "IQM", "optimality gap"], rows)

"""Sections of a report: settings beside each other, in other worlds, over several worlds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from marl_lib import evaluation, plotting
from marl_lib.evaluation import iqm
from marl_lib.records import final_scores
from marl_lib.report.page import Page
from marl_lib.report.study import Study, differences
from marl_lib.report.wording import interval, listed, number, p_value, words


def settings_beside(page: Page, study: Study) -> None:
    """Add how each setting differs from the baseline, and whether that can be luck."""
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


def sensitivity(page: Page, study: Study) -> None:
    """Add how the return depends on what was swept."""
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
        page.figure(study.picture(f"sensitivity-{key}"), ax, f"Return by {words(key)}; IQM {said}")
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


def other_worlds(page: Page, study: Study) -> None:
    """Add the return in worlds that nothing was trained in."""
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
    page.figure(study.picture("worlds"), ax, alt)
    ax = plotting.heatmap(
        change, rows=list(runs), columns=shown, label="change (IQM)", centre=0.0, fmt=fmt
    )
    page.figure(study.picture("worlds-change"), ax, f"Change of the return in {listed(shown)}")
    page.table(
        ["setting", *shown],
        [[k, *(interval(there[k][:, j] - own[k]) for j in range(len(names)))] for k in runs],
    )


def _lowest(study: Study) -> tuple[float, str]:
    """Return the return that counts as nothing, and what it is."""
    if "random" in study.references:
        return study.references["random"], "random play"
    start = [r["curve"]["episode_return"][0] for rs in study.runs.values() for r in rs]
    return float(np.mean(start)), "the untrained networks"


def across(page: Page, studies: Sequence[Study]) -> None:
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

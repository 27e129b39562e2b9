"""Sections of a report: how each setting learned, and how well it did in the end."""

from __future__ import annotations

import numpy as np

from marl_lib import evaluation, plotting
from marl_lib.evaluation import iqm
from marl_lib.records import final_scores
from marl_lib.report.page import Page
from marl_lib.report.study import Study, over_training
from marl_lib.report.wording import interval, listed, number, range_of, words

STABILITY = ("policy_loss", "value_loss", "entropy", "approx_kl", "explained_variance")
TOLERANCE = 0.05  # of the range of an experiment's curves, within which a curve is at rest


def returns(page: Page, study: Study) -> None:
    """Add the scores of the last evaluation."""
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
    for i, group in enumerate(study.groups(compared) if compared else []):
        ax = plotting.interval_plot({k: compared[k] for k in group}, references=study.lines)
        said = listed([f"{k} {number(iqm(compared[k]))}" for k in group])
        alt = f"Final return of each seed, IQM and interval: {said}"
        page.figure(study.picture("return", i), ax, alt)


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


def learning_curves(page: Page, study: Study) -> None:
    """Add the return over training."""
    curves = {k: over_training(r, "curve", "episode_return") for k, r in study.plain.items()}
    if not curves:
        return
    page.add("### Learning curves", "The greedy policy's return: IQM over seeds, pointwise band.")
    for i, group in enumerate(study.groups(curves)):
        ax = plotting.learning_curve(
            {k: curves[k] for k in group}, references=study.lines, fit_from=0.2
        )
        ends = listed([f"{k} ends at {number(float(iqm(curves[k][1][:, -1])))}" for k in group])
        alt = f"Return over environment steps: {ends}"
        page.figure(study.picture("learning", i), ax, alt)


def steps_to_threshold(page: Page, study: Study) -> None:
    """Add when each setting reached the threshold, if there is one."""
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
        spread = range_of(found) if reached else "—"
        middle = number(float(np.median(found)))
        rows.append([label, f"{reached} of {len(found)}", middle, spread, f"{every:,}"])
    header = ["setting", "seeds that reached it", "median", "range", "evaluated every"]
    page.table(header, rows)


def convergence(page: Page, study: Study) -> None:
    """Add where the curves came to rest."""
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


def stability(page: Page, study: Study) -> None:
    """Add what the learners reported of themselves."""
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
    for i, group in enumerate(study.groups(runs)):
        axes = plotting.small_multiples({words(n): {k: curves[n][k] for k in group} for n in names})
        alt = f"{listed([words(n) for n in names])} over training, for {listed(group)}".capitalize()
        page.figure(study.picture("stability", i), axes, alt)
    page.table(
        ["setting", *map(words, names)],
        [[k, *(interval(curves[n][k][1][:, -1], np.mean) for n in names)] for k in runs],
    )

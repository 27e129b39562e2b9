"""Section of a report: how much each policy rests on each feature of what it sees."""

from __future__ import annotations

from typing import Any

import numpy as np

from marl_lib import plotting
from marl_lib.interpret import agreement, shares
from marl_lib.report.page import Page
from marl_lib.report.study import Records, Study
from marl_lib.report.wording import interval, listed, words

FEATURES = {
    "CartPole-v1": ("position", "velocity", "angle", "angular velocity"),
    "Acrobot-v1": ("cos θ₁", "sin θ₁", "cos θ₂", "sin θ₂", "velocity of θ₁", "velocity of θ₂"),
    "MountainCar-v0": ("position", "velocity"),
}
MOST_FEATURES = 16  # bars of one panel


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


def feature_importance(page: Page, study: Study) -> None:
    """Add how much each feature matters, by every measure recorded."""
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
    page.figure(study.picture(f"importance-{label}"), axes, alt)
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
        page.figure(study.picture(f"agreement-{label}"), ax, alt)
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

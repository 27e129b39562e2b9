"""Reports: from recorded runs to Markdown and figures, every number read from their files.

What is recorded decides what a report holds: a section without data is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib

from marl_lib import plotting
from marl_lib.config import choice, require
from marl_lib.report.comparisons import across, other_worlds, sensitivity, settings_beside
from marl_lib.report.importance import feature_importance
from marl_lib.report.learning import (
    convergence,
    learning_curves,
    returns,
    stability,
    steps_to_threshold,
)
from marl_lib.report.origin import compute, what_was_run
from marl_lib.report.page import Page
from marl_lib.report.study import Study, read, with_threshold
from marl_lib.report.wording import listed

SECTIONS: tuple[Callable[[Page, Study], None], ...] = (
    what_was_run,
    returns,
    learning_curves,
    steps_to_threshold,
    convergence,
    stability,
    settings_beside,
    sensitivity,
    other_worlds,
    feature_importance,
    compute,
)


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
    studies = [with_threshold(s, threshold) for s in studies]
    page = Page(Path(out))
    page.folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(cast(Any, plotting.STYLE)):
        _title(page, studies)
        for study in studies:
            page.add(f"## {study.name}: {study.env}")
            for section in SECTIONS:
                section(page, study)
        across(page, studies)
    path = page.folder / "report.md"
    path.write_text("\n".join(page.lines).rstrip() + "\n", encoding="utf-8")
    return [path, *page.figures]


def _title(page: Page, studies: Sequence[Study]) -> None:
    page.add(
        f"# Report: {listed(list(dict.fromkeys(s.name for s in studies)))}",
        "Every number is computed from the recorded runs. A score is a seed's mean return over the "
        "episodes of its last evaluation, played greedily and in the same worlds by every seed. "
        "Numbers in brackets are 95 % intervals of the percentile bootstrap over seeds; IQM is the "
        "mean of the middle half of the seeds.",
    )

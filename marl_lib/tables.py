"""Tables of what tuned experiments came to: a list of rows, each column -> text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from marl_lib import tuning
from marl_lib.evaluation import bootstrap_interval, iqm, significance
from marl_lib.records import final_scores

COLUMNS = (
    "method",
    "seeds",
    "tried",
    "chosen",
    "at an edge",
    "reward",
    "parameters",
    "steps",
    "seconds",
    "return (IQM)",
    "p (Holm)",
)
Row = dict[str, str]
Runs = Mapping[str, Sequence[dict]]  # label -> records

EDGES = {0: "no", -1: "the lowest", 1: "the highest"}


def settings_table(tried: Runs) -> list[Row]:
    """Return the tuning stage, one row for each setting of each method.

    Parameters
    ----------
    tried : dict of label -> records
        As :func:`marl_lib.records.load_tuning` returns them.
    """
    rows = []
    for label, records in tried.items():
        choice = tuning.choose(tuning.trials(records))
        seeds = len({r["seed"] for r in records})
        score = f"return ({tuning.statistic(seeds)})"
        for trial in choice.trials:
            row = {"method": label, "setting": _values(trial.values), "seeds": str(seeds)}
            row[score] = f"{trial.score:.4g}" if trial.scores else "diverged"
            rows.append(row | {"chosen": "yes" if trial is choice.best else ""})
    return rows


def methods_table(results: Runs, tried: Runs) -> list[Row]:
    """Return what tuned methods came to, one row for each; what does not learn has one too.

    Its columns are those of ``COLUMNS``, without any that would be empty. Steps and seconds are
    those of one seed. The last column is the larger of the p-values of Welch's and the Mann–Whitney
    test against the method with the highest IQM, each corrected by Holm's method for all
    comparisons with it.

    Parameters
    ----------
    results, tried : dict of label -> records
        Of both stages, as :mod:`marl_lib.records` loads them.
    """
    scores = {label: final_scores(records) for label, records in results.items()}
    p_values = _against_the_best({k: v for k, v in scores.items() if k in tried and len(v) > 1})
    rows = []
    for label in {**results, **tried}:
        row = {"method": label, "p (Holm)": p_values.get(label, "")}
        if label in tried:
            row |= _effort(tried[label])
        if label in tried and label in results:  # the result may not be there yet
            row |= _cost(results[label])
        if label in results:
            of = scores[label]
            row["return (IQM)"] = str(bootstrap_interval(of)) if len(of) > 1 else f"{of[0]:.4g}"
        rows.append(row)
    filled = [k for k in COLUMNS if any(row.get(k) for row in rows)]
    return [{k: row.get(k, "") for k in filled} for row in rows]


def _effort(records: Sequence[dict]) -> Row:
    """Return how a method was tuned, and to what."""
    choice = tuning.choose(tuning.trials(records))
    return {
        "tried": str(len(choice.trials)),
        "chosen": _values(choice.best.values),
        "at an edge": EDGES[choice.edge],
    }


def _cost(records: Sequence[dict]) -> Row:
    """Return what the runs of a method took, and what they learned from."""
    seconds = [r["wall_clock_seconds"] / r["replicates_in_process"] for r in records]
    parameters = records[0]["parameters"]
    return {
        "seeds": str(len(records)),
        "reward": records[0].get("reward", ""),
        "parameters": "" if parameters is None else f"{parameters:,}",
        "steps": " to ".join(f"{n:,}" for n in _ends([r["environment_steps"] for r in records])),
        "seconds": f"{np.median(seconds):.3g}",
    }


def _ends(numbers: Sequence[int]) -> list[int]:
    return sorted({min(numbers), max(numbers)})


def _against_the_best(scores: Mapping[str, np.ndarray]) -> Row:
    if len(scores) < 2:
        return {}
    best = max(scores, key=lambda label: float(iqm(scores[label])))
    pairs = significance(scores, best)
    p = {pair.first: max(pair.welch_holm, pair.mann_whitney_holm) for pair in pairs}
    return {best: "best"} | {k: "< 0.001" if v < 0.001 else f"{v:.3f}" for k, v in p.items()}


def _values(values: tuning.Values) -> str:
    said = {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in values.items()}
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in said.items())

"""What a benchmark found: one JSON file each, the same form for all.

====================  ==========================================================================
``benchmark``         name, also of the file
``title``             what was measured, in a line
``unit``              of every value
``lower_is_better``   true for times, false for rates
``run``               ``"make bench"``, or ``"by hand"`` where peers come as sources only
``command``           what makes the file again; ``how`` tells the rest of a run by hand
``commit`` ...        with ``date``, ``machine``, ``load`` (over the minute before) and ``versions``
``rows``              one for each contender at each task, ours first
====================  ==========================================================================

A row has the ``task`` (rows of one task are compared), the ``name`` of who did it and with what
``settings``, its ``values`` (one a repetition; null where the goal was not reached), their
``median`` (null if most were not) and the ``ratio``: how many times slower than the first row of
its task. Rows may say more: ``runs`` holds the details of each repetition.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marl_lib.runs import provenance

RESULTS = Path(__file__).resolve().parents[1] / "book" / "results" / "benchmarks"

Record = dict[str, Any]


def row(
    task: str, name: str, values: Sequence[float | None], settings: str = "", **more: Any
) -> Record:
    """Return a row with the median of its values; what did not arrive took for ever."""
    middle = statistics.median(math.inf if v is None else v for v in values)
    return {
        "task": task,
        "name": name,
        "settings": settings,
        "values": [None if v is None else float(f"{v:.4g}") for v in values],
        "median": float(f"{middle:.4g}") if math.isfinite(middle) else None,
        **more,
    }


def record(
    benchmark: str,
    title: str,
    unit: str,
    rows: Sequence[Record],
    *,
    lower_is_better: bool,
    load: float,
    packages: Sequence[str] = (),
    run: str = "make bench",
    command: str = "make bench",
) -> Record:
    """Return the whole record, ratios and origin included.

    Parameters
    ----------
    load : float
        From :func:`load`, read before the first measurement.
    packages : names of distributions
        Whose versions are kept beside those of :func:`marl_lib.runs.provenance`.
    """
    origin = provenance()
    origin["versions"] |= {name: importlib.metadata.version(name) for name in packages}
    return {
        "benchmark": benchmark,
        "title": title,
        "unit": unit,
        "lower_is_better": lower_is_better,
        "run": run,
        "command": command,
        **origin,
        "load": load,
        "rows": with_ratios(rows, lower_is_better),
    }


def with_ratios(rows: Sequence[Record], lower_is_better: bool) -> list[Record]:
    """Return the rows, each with how many times slower it is than the first of its task."""
    first: dict[str, float | None] = {}
    found = []
    for r in rows:
        ours, theirs = first.setdefault(r["task"], r["median"]), r["median"]
        ratio = None
        if ours is not None and theirs is not None:
            ratio = float(f"{theirs / ours if lower_is_better else ours / theirs:.3g}")
        found.append({**r, "ratio": ratio})
    return found


def load() -> float:
    """Return how busy the machine was over the last minute, in processes; read it at the start."""
    return round(os.getloadavg()[0], 2)


def write(found: Record, folder: Path = RESULTS) -> Path:
    """Write a record to ``folder/<benchmark>.json`` and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['benchmark']}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path


def table(found: Record) -> str:
    """Return a record as a table of text."""
    higher = "" if found["lower_is_better"] else ", higher is better"
    lines = [f"{found['title']} ({found['unit']}{higher})", f"{found['machine']}, {found['date']}"]
    wide = {key: max(len(r[key]) for r in found["rows"]) for key in ("task", "name")}
    for r in found["rows"]:
        median = "not reached" if r["median"] is None else f"{r['median']:,}"
        ratio = "" if r["ratio"] is None else f"{r['ratio']:,} ×"
        parts = [r["task"].ljust(wide["task"]), r["name"].ljust(wide["name"])]
        lines.append("  ".join([*parts, median.rjust(12), ratio.rjust(8)]).rstrip())
    return "\n".join(lines)

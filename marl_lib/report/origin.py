"""Sections of a report: what was run, and what it cost."""

from __future__ import annotations

import json

import numpy as np
import yaml

from marl_lib.report.page import Page
from marl_lib.report.study import NOT_SETTINGS, Records, Study, differences
from marl_lib.report.wording import listed, number, range_of


def what_was_run(page: Page, study: Study) -> None:
    """Add where the runs come from, and what was configured."""
    page.add("### What was run")
    _provenance(page, study)
    leaders: dict[str, str] = {}  # the first setting of each algorithm
    for label, records in study.runs.items():
        leaders.setdefault(records[0]["config"]["algorithm"], label)
    _settings(page, study, leaders)
    for label in leaders.values():
        config = {k: v for k, v in study.runs[label][0]["config"].items() if k not in NOT_SETTINGS}
        text = yaml.safe_dump(config, sort_keys=False).rstrip()
        page.add(f"<details><summary>Configuration of {label}</summary>")
        page.add(f"```yaml\n{text}\n```", "</details>")


def _provenance(page: Page, study: Study) -> None:
    """Add commands, commits, machines and versions."""
    records = [r for several in study.runs.values() for r in several]

    def made(key: str) -> str:
        return listed(list(dict.fromkeys(str(r[key]) for r in records if key in r)) or ["unknown"])

    versions = dict.fromkeys(json.dumps(r.get("versions", {})) for r in records)
    packages = [", ".join(f"{k} {v}" for k, v in json.loads(text).items()) for text in versions]
    changed_too = " (+: with changes that were not committed)" if "+" in made("commit") else ""
    page.add(
        f"- Command: `{made('command')}`\n- Commit: {made('commit')}{changed_too}\n"
        f"- Date: {made('date')}\n"
        f"- Machine: {made('machine')}, device {made('device')}\n- Versions: {'; '.join(packages)}"
    )


def _settings(page: Page, study: Study, leaders: dict[str, str]) -> None:
    """Add a table of the settings, each beside the first of its algorithm."""
    rows = []
    for label, several in study.runs.items():
        config = several[0]["config"]
        leader = leaders[config["algorithm"]]
        other = study.runs[leader][0]["config"]
        changed = [f"{k} = {a}, not {b}" for k, (a, b) in differences(config, other).items()]
        steps = several[0]["curve"]["steps"][-1]
        told = f"as {leader} but {'; '.join(changed)}" if changed else f"as {leader}"
        told = "in full below" if leader == label else told
        rows.append([label, config["algorithm"], _seeds(several), f"{steps:,}", told])
    header = ["setting", "algorithm", "seeds", "steps", "configuration"]
    page.table(header, rows, text=(0, 1, 4))


def _seeds(records: Records) -> str:
    seeds = [r["seed"] for r in records]
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def compute(page: Page, study: Study) -> None:
    """Add the time of training."""
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
        spread = range_of(seconds[k])
        row = [k, listed([str(n) for n in side]), number(float(np.median(seconds[k]))), spread]
        rows.append([*row, number(float(1 / per_step[k])), ratio])
    header = ["setting", "seeds in a process", "seconds a seed (median)", "range"]
    page.table([*header, "steps a second", f"time a step, {study.baseline} = 1"], rows)

"""The page of recorded benchmarks, executed beside no record and beside some."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbclient import NotebookClient

from benchmarks import record


@pytest.fixture
def execute(root, tmp_path):
    """Return a function that executes the page in a folder of its own, and what it shows."""

    def execute():
        notebook = nbformat.read(root / "book" / "speed.ipynb", as_version=4)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
        outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        printed = "".join(o.text for o in outputs if o.output_type == "stream")
        data = [o.data for o in outputs if "data" in o]
        told = [d["text/markdown"] for d in data if "text/markdown" in d]
        return printed, told, [d["text/html"] for d in data if "text/html" in d]

    return execute


def keep(folder, name, rows, **facts):
    facts = {"lower_is_better": True, "load": 0.5} | facts
    record.write(record.record(name, f"What {name} takes", "s", rows, **facts), folder)


def test_no_record(execute, tmp_path):
    (tmp_path / "results").mkdir()
    printed, told, shown = execute()
    assert "No benchmark has been recorded here." in printed
    assert not told and not shown


def test_records_are_shown_with_their_ratios_losses_included(execute, tmp_path):
    folder = tmp_path / "results" / "benchmarks"
    keep(folder, "worlds", [record.row("a", "ours", [100.0, 120.0])], lower_is_better=False)
    runs = [{"seed": seed} for seed in range(3)]
    rows = [
        record.row("pole", "ours", [2.0, 3.0, 4.0], "--fast", runs=runs),
        record.row("pole", "<slow>", [30.0, None, 60.0], runs=runs),
        record.row("pole", "faster", [1.5, 1.5, 1.5], runs=runs, how="by a trick"),
        record.row("pole", "never", [None, None, 9.0], runs=runs),
    ]
    keep(folder, "time-to-threshold", rows)
    keep(folder, "time-startup", [record.row("start", "torch alone", [1.25])])
    printed, told, shown = execute()
    assert "Benchmarks recorded: 3" in printed
    assert "Of our 3.0 seconds" in told[0] and "1.2 pass" in told[0] and "12 seconds" in told[0]
    first, second, third = shown  # the most asked for first
    assert 'id="time-to-threshold"' in first and "<img" in first
    assert 'id="time-startup"' in second and 'id="worlds"' in third and "<img" not in third
    found = re.findall(
        r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>', first
    )
    assert found == [
        ("ours", "3", "2 to 4", ""),
        ("&lt;slow&gt;", "60", "30 to 60, 1 not reached", "20"),
        ("faster", "1.5", "1.5 to 1.5", "0.5"),
        ("never", "not reached", "2 of 3 not reached", ""),
    ]
    for part in ("--fast", "by a trick", "make bench", "load 0.5", "3 repetitions of each"):
        assert part in first

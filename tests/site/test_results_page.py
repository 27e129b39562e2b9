"""The page of recorded results, executed beside no result and beside some."""

from __future__ import annotations

import json
import re

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from marl_lib import evaluation


@pytest.fixture
def execute(root, tmp_path):
    """Return a function that executes the page in a folder of its own, and what it shows."""

    def execute():
        notebook = nbformat.read(root / "book" / "results.ipynb", as_version=4)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
        outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
        printed = "".join(o.text for o in outputs if o.output_type == "stream")
        return printed, [o.data["text/html"] for o in outputs if "data" in o]

    return execute


def record(label, seed, returns, **entries):
    """Return a recorded run with final returns of these values."""
    return {
        "experiment": "a-test",
        "algorithm": label,
        "env": "GridWorld",
        "seed": seed,
        "config": {},
        "evaluation": {"episode_return": returns},
        "commit": "0123456789abcdef",
        "versions": {},
        "device": "cpu",
        "machine": "a machine",
        "command": "marl experiment <a-test>",
        "date": "2026-01-01",
        **entries,
    }


def test_no_result(execute, tmp_path):
    (tmp_path / "results").mkdir()
    printed, shown = execute()
    assert "No run has been recorded" in printed
    assert shown == []


def test_results_are_listed_with_interval_and_origin(execute, tmp_path):
    folder = tmp_path / "results" / "a-test"
    folder.mkdir(parents=True)
    means = np.array([1.0, 2.0, 4.0, 8.0])
    for seed, mean in enumerate(means):
        run = record(
            "dqn",
            seed,
            [mean - 1, mean + 1],
            curve={"steps": [0, 100], "episode_return": [0.0, float(mean)]},
            wall_clock_seconds=12.3,
            replicates_in_process=4,
        )
        (folder / f"dqn-{seed}.json").write_text(json.dumps(run))
    (folder / "planner-0.json").write_text(json.dumps(record("planner", 0, [9.0, 9.5])))
    printed, (shown,) = execute()
    assert "Experiments recorded: 1, runs: 5" in printed
    rows = re.findall(r'<tr><th scope="row">(\w+)</th><td>(.*?)</td><td>(.*?)</td></tr>', shown)
    assert rows == [
        ("dqn", "4", str(evaluation.bootstrap_interval(means))),
        ("planner", "does not learn", "9.25"),
    ]
    assert "<pre>marl experiment &lt;a-test&gt;</pre>" in shown
    assert "<code>0123456789</code>" in shown
    assert "12 s for 4 seeds" in shown
    for file in ("dqn-0", "dqn-3", "planner-0"):
        assert f'href="results/a-test/{file}.json"' in shown
    assert "dqn goes from 0 to 3 over 4 seeds; planner stays at 9.25" in shown


def test_of_a_tuned_experiment_both_stages_are_shown(execute, tmp_path):
    folder = tmp_path / "results" / "a-test"
    (folder / "tuning").mkdir(parents=True)
    took = {"wall_clock_seconds": 12.0, "replicates_in_process": 4, "environment_steps": 100}
    for label, top in (("good", 9.0), ("poor", 1.0)):
        for seed in range(4):
            curve = {"steps": [0, 100], "episode_return": [0.0, top]}
            run = record(label, seed, [top + seed / 8], curve=curve, parameters=1234, **took)
            (folder / f"{label}-{seed}.json").write_text(json.dumps(run))
        for setting, rate in enumerate((0.001, 0.002, 0.004), start=1):
            stage = {"setting": setting, "values": {"learning_rate": rate}, "evaluation_seed": 77}
            run = record(label, 50, [top - abs(setting - 2)], **stage)
            (folder / "tuning" / f"{label}-{setting}-50.json").write_text(json.dumps(run))
    printed, (shown,) = execute()
    assert "runs: 8" in printed  # those of the result
    row = '<th scope="row">good</th><td>4</td><td>3</td><td>learning rate 0.002</td><td>no</td>'
    assert row + "<td>1,234</td><td>100</td><td>3</td>" in shown
    assert "<td>best</td>" in shown
    assert shown.count("<td>yes</td>") == 2
    assert "With seeds 50 on worlds of seed 77." in shown

"""A report says what the files say: every section against records whose truth is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from marl_lib import evaluation, plotting, report
from marl_lib.config import ConfigError
from marl_lib.experiments import run_experiment
from marl_lib.report.importance import features
from marl_lib.report.learning import STABILITY
from marl_lib.report.study import over_training, read

SEEDS = 4
STEPS = list(range(0, 100, 10))


def record(
    label: str,
    seed: int,
    curve: list[float],
    env: str = "CartPole-v1",
    config: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a record as an experiment writes it; its last evaluation is ``more["final"]``."""
    own = {"env": env, "algorithm": "ppo", "seed": 0, "ppo": {"rate": 0.01}, "env_options": {}}
    final = more.pop("final", [curve[-1]] * 3)
    return {
        "experiment": "cart", "command": "marl experiment cart", "commit": "abc", "machine": "one",
        "versions": {"torch": "2"}, "date": "2026-01-01", "device": "cpu",
        "algorithm": label, "env": env, "seed": seed, "config": own | (config or {}),
        "curve": {"steps": STEPS, "episode_return": curve, "episode_length": curve},
        "evaluation": {"episode_return": final, "episode_length": [1, 2, 3]},
        "wall_clock_seconds": 12.0, "replicates_in_process": 4,
    } | more  # fmt: skip


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    for r in records:
        (folder / name / f"{r['algorithm']}-{r['seed']}.json").write_text(json.dumps(r))


def rising(seed: int, top: float, low: float = 20.0) -> list[float]:
    """Return a curve that is at its top from the fifth point on, a step later for each seed."""
    return [low] * (4 + seed) + [top] * (len(STEPS) - 4 - seed)


def everything(label: str, seed: int, top: float, **more: Any) -> dict[str, Any]:
    """Return a record with all that can be recorded."""
    rng = np.random.default_rng(seed)
    diagnostics = {n: rng.normal(size=len(STEPS)).tolist() for n in STABILITY}
    return record(label, seed, rising(seed, top), diagnostics={"steps": STEPS, **diagnostics},
                  tests={"long": {"episode_return": [top - 50 - seed] * 3},
                         "heavy": {"episode_return": [top + 1.0] * 3}},
                  importance={"attention": [0.4, 0.3, 0.2, 0.1],
                              "gradient_input": [1.0, 2.0, 3.0, 4.0 + seed],
                              "permutation": [0.01, 0.02, 0.04, 0.03]}, **more)  # fmt: skip


def lr(value: float) -> dict[str, Any]:
    return {"ppo": {"rate": value}}


RANDOM = {k: v for k, v in record("random", 0, rising(0, 1), final=[24.0, 26.0]).items()
          if k not in ("curve", "wall_clock_seconds")}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    cart = [everything("base", s, 480.0 + 5 * s) for s in range(SEEDS)]
    cart += [everything("apart", s, 300.0 + 5 * s, wall_clock_seconds=24.0) for s in range(SEEDS)]
    for value, top in ((0.1, 100.0), (0.002, 200.0)):
        cart += [record(f"rate={value}", s, rising(s, top + s), config=lr(value)) for s in range(4)]
    write(folder, "cart", [*cart, RANDOM])
    write(folder, "idle", [RANDOM])
    acro = [record("base", s, rising(s, -90.0 - s, -500.0), "Acrobot-v1") for s in range(3)]
    write(folder, "acro", acro)
    return folder


@pytest.fixture(scope="module")
def page(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of both experiments, which no test changes."""
    out = tmp_path_factory.mktemp("out") / "deep" / "report"
    paths = report.write_report(["cart", "acro"], out, results=results, baseline="base")
    assert paths[0] == out / "report.md"
    assert set(paths) == set(out.iterdir())
    return paths[0]


def sections(path: Path) -> dict[str, str]:
    """Return the text below each heading, headings with those above them."""
    found: dict[str, str] = {}
    above: list[str] = []
    for part in re.split(r"(?m)^(?=#+ )", path.read_text()):
        if not part:
            continue
        heading, _, text = part.partition("\n")
        level = len(heading.split()[0])
        above = [*above[: level - 1], heading.lstrip("# ")]
        found[" / ".join(above[1:])] = text
    return found


def table(text: str, first: str = "setting") -> dict[str, dict[str, str]]:
    """Return the table with that first column: row -> column -> cell (of equal names, the last)."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    header, _, *body = rows
    assert all(len(row) == len(header) for row in body)
    return {row[0]: dict(zip(header, row, strict=True)) for row in body}


CART = "cart: CartPole-v1 / "


# What it holds ------------------------------------------------------------------------------------


def test_it_has_a_section_for_all_that_was_recorded(page: Path) -> None:
    assert list(sections(page)) == [
        "",
        "cart: CartPole-v1",
        *(
            CART + name
            for name in (
                "What was run", "Return", "Learning curves", "Steps to the threshold",
                "Convergence", "Stability", "Settings beside base", "Sensitivity", "Other worlds",
                "Feature importance", "Feature importance / base", "Feature importance / apart",
                "Compute",
            )
        ),
        "acro: Acrobot-v1",
        *(
            "acro: Acrobot-v1 / " + name
            for name in (
                "What was run", "Return", "Learning curves", "Steps to the threshold",
                "Convergence", "Compute",
            )
        ),
        "Across environments",
    ]  # fmt: skip


def test_every_figure_is_there_and_has_words_for_those_who_do_not_see_it(page: Path) -> None:
    shown = re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text())
    assert sorted(name for _, name in shown) == sorted(p.name for p in page.parent.glob("*.png"))
    assert len(shown) == len({name for _, name in shown}) == 13
    for alt, name in shown:
        assert len(alt) > 25 and alt[0].isupper() and not set("[]|\n") & set(alt), alt
        with Image.open(page.parent / name) as picture:
            assert min(picture.size) > 150
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20  # not a blank sheet


def test_the_same_files_give_the_same_report(results: Path, tmp_path: Path) -> None:
    first, *figures = report.write_report(["acro"], tmp_path / "a", results=results)
    again, *others = report.write_report(["acro"], tmp_path / "b", results=results)
    assert first.read_bytes() == again.read_bytes()
    assert [p.read_bytes() for p in figures] == [p.read_bytes() for p in others]


def test_what_was_run(page: Path) -> None:
    text = sections(page)[CART + "What was run"]
    for words in ("`marl experiment cart`", "Commit: abc\n", "Machine: one, device cpu", "torch 2"):
        assert words in text
    rows = table(text)
    assert list(rows) == ["base", "apart", "rate=0.002", "rate=0.1"]  # a sweep stands at the end
    assert rows["base"]["seeds"] == "0 to 3" and rows["base"]["steps"] == "90"
    assert rows["base"]["configuration"] == "in full below"
    assert rows["apart"]["configuration"] == "as base"
    assert rows["rate=0.1"]["configuration"] == "as base but ppo.rate = 0.1, not 0.01"
    assert "```yaml\nenv: CartPole-v1\nalgorithm: ppo\nppo:\n  rate: 0.01\n" in text
    assert "seed" not in text.split("```")[1]


def test_returns_are_those_of_the_files(page: Path) -> None:
    rows = table(sections(page)[CART + "Return"])
    scores = np.array([480.0, 485, 490, 495])
    assert rows["base"] == {
        "setting": "base", "seeds": "4", "lowest seed": "480", "seeds at 475 or more": "4 of 4",
        "mean": str(evaluation.bootstrap_interval(scores, np.mean)),
        "IQM": str(evaluation.bootstrap_interval(scores)),
    }  # fmt: skip
    assert rows["apart"]["seeds at 475 or more"] == "0 of 4"
    assert rows["random"]["mean"] == "25" and rows["random"]["seeds"] == ""
    assert "last evaluation: 3." in sections(page)[CART + "Return"]
    acro = table(sections(page)["acro: Acrobot-v1 / Return"])
    assert acro["base"]["seeds at −100 or more"] == "3 of 3"
    assert acro["base"]["mean"].startswith("−91")


def test_what_a_world_measures_beside_the_return(tmp_path: Path) -> None:
    one = [record("a", s, rising(s, 5), env="GridWorld") for s in range(3)]
    for r in one:
        r["evaluation"]["targets_collected"] = [0.5 + 0.1 * r["seed"]] * 3
    write(tmp_path, "grid", one)
    path, *_ = report.write_report(["grid"], tmp_path / "out", results=tmp_path)
    text = sections(path)["grid: GridWorld / Return"].split("Means of what else")[1]
    expected = evaluation.bootstrap_interval([0.5, 0.6, 0.7], np.mean)
    assert table(text) == {"a": {"setting": "a", "targets collected": str(expected)}}
    # no threshold is known for this world
    assert not any("threshold" in name for name in sections(path))


def test_steps_to_the_threshold(page: Path, results: Path, tmp_path: Path) -> None:
    rows = table(sections(page)[CART + "Steps to the threshold"])
    assert rows["base"] == {
        "setting": "base", "seeds that reached it": "4 of 4", "median": "55",
        "range": "40 to 70", "evaluated every": "10",
    }  # fmt: skip
    assert rows["apart"]["seeds that reached it"] == "0 of 4"
    assert rows["apart"]["median"] == "not reached" and rows["apart"]["range"] == "—"
    path, *_ = report.write_report(["cart"], tmp_path, results=results, threshold=308.0)
    rows = table(sections(path)[CART + "Steps to the threshold"])
    assert rows["apart"]["seeds that reached it"] == "2 of 4"  # 310 and 315
    assert rows["apart"]["median"] == "not reached"  # two of four do not
    assert rows["apart"]["range"] == "60 to not reached"


def test_convergence(page: Path) -> None:
    rows = table(sections(page)[CART + "Convergence"])
    # 480 + 5 s from step 40 + 10 s; a quarter of ten points, at least three: all seeds converge
    assert rows["base"]["final level"] == str(
        evaluation.bootstrap_interval([480.0, 485, 490, 495], np.mean)
    )
    assert (rows["base"]["converged"], rows["base"]["at step"]) == ("4 of 4", "55")
    assert (rows["base"]["slope"], rows["base"]["oscillation"]) == ("0", "0")
    assert "more than 23.8 (5 %" in sections(page)[CART + "Convergence"]  # of 495 - 20


def test_a_setting_is_held_against_the_baseline(page: Path) -> None:
    text = sections(page)[CART + "Settings beside base"]
    scores = {"base": [480.0, 485, 490, 495], "apart": [300.0, 305, 310, 315]}
    (pair,) = evaluation.significance(scores, "base")
    row = table(text)["apart"]
    assert row["difference of IQMs"] == "−180 [−190, −170]"
    assert row["difference of IQMs"] == str(pair.comparison.iqm_difference).replace("-", "−")
    assert row["probability of improvement"] == "0.00 [0.00, 0.00]"
    assert row["Welch p"] == "< 0.001"
    assert row["Mann–Whitney p"] == f"{pair.comparison.mann_whitney_p:.3f}" == "0.029"
    assert "apart (lower) differs from base" in text


def test_corrected_p_values_are_those_of_holm(tmp_path: Path) -> None:
    tops = {"a": [1.0, 2, 3, 4], "b": [2.0, 3, 4, 5.5], "c": [2.5, 3.5, 4.5, 9]}
    for label, values in tops.items():
        write(tmp_path, "x", [record(label, s, rising(s, v, 0)) for s, v in enumerate(values)])
    path, *_ = report.write_report(["x"], tmp_path / "out", results=tmp_path)
    rows = table(sections(path)["x: CartPole-v1 / Settings beside a"])
    pairs = evaluation.significance(tops, "a")
    assert [p.mann_whitney_holm for p in pairs] != [p.comparison.mann_whitney_p for p in pairs]
    # the last column of that name
    assert [rows[k]["corrected"] for k in "bc"] == [f"{p.mann_whitney_holm:.3f}" for p in pairs]
    assert "none of them can be told" in sections(path)["x: CartPole-v1 / Settings beside a"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[tuple, dict]]]:
    """Return what each plotting function is called with, while it draws as ever."""
    calls: dict[str, list[tuple[tuple, dict]]] = {}

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls.setdefault(name, []).append((args, options))
            return function(*args, **options)

        return call

    for name in ("learning_curve", "small_multiples", "interval_plot", "sensitivity_plot",
                 "heatmap", "importance_plot"):  # fmt: skip
        monkeypatch.setattr(plotting, name, watch(name, getattr(plotting, name)))
    return calls


def test_figures_are_drawn_from_the_files(
    results: Path, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    path, *_ = report.write_report(["cart"], tmp_path, results=results, baseline="base")
    ((curves,), options) = drawn["learning_curve"][0]
    assert list(curves) == ["base", "apart"]  # the sweep is drawn elsewhere
    np.testing.assert_array_equal(curves["base"][1][2], rising(2, 490.0))
    assert options["references"] == {"threshold": 475.0, "random": 25.0}
    ((panels,), _) = drawn["small_multiples"][0]
    assert list(panels)[3:] == ["approx kl", "explained variance"] and len(panels) == 5
    (((scores,), options),) = drawn["sensitivity_plot"]
    assert list(scores) == ["0.002", "0.01", "0.1"]  # by size, the default among them
    assert options["default"] == "0.01" and options["xlabel"] == "rate"
    np.testing.assert_array_equal(scores["0.01"], [480.0, 485, 490, 495])
    assert "0.01 does best (IQM 488) and 0.1 worst (102)" in sections(path)[CART + "Sensitivity"]
    ((worlds,), options), ((change,), _), *_ = drawn["heatmap"]
    assert options["columns"] == ["as trained", "long", "heavy"]
    np.testing.assert_allclose(worlds[0], [487.5, 436, 488.5])
    np.testing.assert_allclose(change, [[-51.5, 1 + 0.0]] * 2)
    rows = table(sections(path)[CART + "Other worlds"])
    assert rows["apart"]["long"].startswith("−51.5 [") and rows["apart"]["heavy"] == "1 [1, 1]"


def test_importance_is_shared_and_compared(page: Path, results: Path, drawn: dict, tmp_path: Path
                                           ) -> None:  # fmt: skip
    text = sections(page)[CART + "Feature importance / base"]
    assert "attention: position (40 %); gradient × input: angular velocity" in text
    # gradient × input and permutation: ranks 1 2 3 4 and 1 2 4 3, so 0.8; attention is reversed
    assert "order the features alike to 0.80 [0.80, 0.80], attention and these to −0.90 [" in text
    assert "by itself it is no explanation" in sections(page)[CART + "Feature importance"]
    report.write_report(["cart"], tmp_path, results=results)
    ((shares, names), _), *_ = drawn["importance_plot"]
    assert names == ["position", "velocity", "angle", "angular velocity"]
    np.testing.assert_allclose(shares["gradient × input"][0], [0.1, 0.2, 0.3, 0.4])
    matrix = drawn["heatmap"][2][0][0]
    np.testing.assert_allclose(matrix, [[1, -1, -0.8], [-1, 1, 0.8], [-0.8, 0.8, 1]])


def test_features_have_names_where_they_are_known() -> None:
    def names(count: int, **options: Any) -> list[str]:
        return features(record("a", 0, [0.0], config={"env_options": options}), count)

    assert names(4)[3] == "angular velocity"
    assert names(2, velocities=False) == ["position", "angle"]
    hidden = names(6, velocities=False, history=2)
    assert hidden == ["flag, t − 1", "position, t − 1", "angle, t − 1",
                      "flag, t", "position, t", "angle, t"]  # fmt: skip
    assert names(3) == ["feature 1", "feature 2", "feature 3"]


def test_of_many_features_the_most_important_are_drawn(tmp_path: Path, drawn: dict) -> None:
    values = np.arange(40.0)
    values[3] = 100
    importance = {"permutation": values.tolist()}
    write(tmp_path, "x", [record("a", s, rising(s, 5), importance=importance) for s in range(2)])
    path, *_ = report.write_report(["x"], tmp_path / "out", results=tmp_path)
    ((shares, names), _) = drawn["importance_plot"][0]
    assert names == [f"feature {i + 1}" for i in (3, *range(25, 40))]
    np.testing.assert_allclose(shares["permutation"][0, 0], 100 / values.sum())
    text = sections(path)["x: CartPole-v1 / Feature importance / a"]
    assert "16 features of 40" in text and "feature 4 (" in text


def test_time_is_given_per_seed_and_per_step(page: Path) -> None:
    rows = table(sections(page)[CART + "Compute"])
    assert rows["base"]["seconds a seed (median)"] == "3"  # 12 s for 4 seeds side by side
    assert rows["base"]["steps a second"] == "30" and rows["base"]["range"] == "3"
    assert rows["apart"]["time a step, base = 1"] == "2"


def test_scores_across_environments(page: Path, results: Path) -> None:
    text = sections(page)["Across environments"]
    # random play gives 25 in the one; in the other the untrained networks give -500
    assert "CartPole-v1 from 25 (random play) to 475" in text
    assert "Acrobot-v1 from −500 (the untrained networks) to −100" in text
    rows = table(text)
    assert list(rows) == ["base"]
    scores = np.column_stack(
        [(np.array([480.0, 485, 490]) - 25) / 450, (np.array([-90.0, -91, -92]) + 500) / 400]
    )  # three seeds are in both
    found = evaluation.aggregates(scores)
    assert rows["base"]["IQM"] == f"{found['iqm']:.2f}"
    assert rows["base"]["median"] == f"{found['median']:.2f}"
    assert rows["base"]["optimality gap"] == "0.00 [0.00, 0.00]"


# What is missing ----------------------------------------------------------------------------------


def test_one_seed_has_no_interval_and_is_compared_with_nothing(tmp_path: Path) -> None:
    write(tmp_path, "x", [everything(k, 0, v) for k, v in (("a", 400.0), ("b", 300.0))])
    path, *_ = report.write_report(["x"], tmp_path / "out", results=tmp_path)
    found = sections(path)
    assert not any("beside" in name for name in found)
    assert table(found["x: CartPole-v1 / Return"])["a"]["IQM"] == "400"
    assert "[" not in found["x: CartPole-v1 / Other worlds"].split("| setting |")[1]


def test_more_settings_than_one_figure_holds(tmp_path: Path, drawn: dict) -> None:
    for i in range(9):
        write(tmp_path, "x", [record(f"s{i}", s, rising(s, 100.0 + i)) for s in range(2)])
    report.write_report(["x"], tmp_path / "out", results=tmp_path, baseline="s3")
    for name in ("learning_curve", "interval_plot"):
        groups = [list(args[0]) for args, _ in drawn[name]]
        assert groups == [["s3", "s0", "s1", "s2", "s4", "s5"], ["s3", "s6", "s7", "s8"]]


def test_runs_that_were_stopped_at_different_steps() -> None:
    records = [record("a", s, rising(s, 5)) for s in range(2)]
    records[1]["curve"] = {"steps": [0, 20, 30], "episode_return": [7, 8, 9]}
    steps, found = over_training(records, "curve", "episode_return")
    assert steps.tolist() == [0, 20, 30]
    assert found.tolist() == [[20, 20, 20], [7, 8, 9]]


def test_a_shipped_plan_gives_the_order(root: Path) -> None:
    (study,) = read("independent-dqn", root / "book" / "results")
    assert list(study.runs) == ["dqn-shared", "dqn-separate", "dqn-shared-reward"]
    assert study.baseline == "dqn-shared" and set(study.references) == {"planner", "random"}


def test_an_experiment_in_two_worlds_is_two_studies(tmp_path: Path) -> None:
    write(tmp_path, "x", [record("a", 0, rising(0, 5)), record("b", 0, rising(0, 5), "Acrobot-v1")])
    assert [(s.env, list(s.runs)) for s in read("x", tmp_path)] == [
        ("CartPole-v1", ["a"]),
        ("Acrobot-v1", ["b"]),
    ]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["cat"], {}, "recorded experiment 'cat' is not known; did you mean 'cart'"),
        (["cart"], {"baseline": "bas"}, "baseline 'bas' is not known; did you mean 'base'"),
        (["cart", "acro"], {"threshold": 5.0}, "--threshold must be for one world, not .*Acrobot"),
        (["idle"], {}, "idle holds no training run, only random"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    names: list[str], options: dict, message: str, results: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        report.write_report(names, tmp_path / "out", results=results, **options)
    assert not (tmp_path / "out").exists()


# Real runs ----------------------------------------------------------------------------------------


def test_a_real_experiment_is_reported(tmp_path: Path) -> None:
    tiny = {"timesteps": 400, "eval_every": 100, "eval_episodes": 4, "final_episodes": 4,
            "num_envs": 4, "env": "CartPole-v1", "env_options": {"max_steps": 30}}  # fmt: skip
    wide = {
        "encoder": {"d_model": 8, "n_heads": 2}, "rollout": 8, "batch_size": 16, "epochs": 1
    }  # fmt: skip
    plan = {
        "seeds": 2,
        "settings": {
            "attention": tiny | {"algorithm": "attention_ppo", "attention_ppo": wide},
            "mlp": tiny | {"algorithm": "ppo", "ppo": {"rollout": 8, "batch_size": 16}},
        },
        "tests": {"long": {"physics": {"length": 1.0}}},
        "importance": True,
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    run_experiment(str(tmp_path / "plan.yaml"), tmp_path / "results")
    path, *figures = report.write_report(
        ["plan"], tmp_path / "out", results=tmp_path / "results", threshold=10.0
    )
    found = sections(path)
    assert len(found) == 14 and len(figures) == 9
    for name, text in found.items():
        assert "nan" not in text and "None" not in text, name
    assert "attention rollout" in found["plan: CartPole-v1 / Feature importance / attention"]
    assert "attention" not in found["plan: CartPole-v1 / Feature importance / mlp"]
    assert set(table(found["plan: CartPole-v1 / Other worlds"])) == {"attention", "mlp"}

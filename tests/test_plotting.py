"""What the figures show, read back from the Axes."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from marl_lib import evaluation, plotting

matplotlib.use("Agg")
plt = plotting.plt

STEPS = np.arange(0, 6000, 500)
RNG = np.random.default_rng(3)
CURVES = RNG.normal(0, 1, (10, len(STEPS))) + np.linspace(0, 30, len(STEPS))
SCORES = {"low": RNG.normal(1, 0.3, 10), "high": RNG.normal(2, 0.3, 10)}


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plotting.use_style()
        yield
        plt.close("all")


def drawn(ax):
    """Render, so that a fault in drawing shows, and return all texts of the axes."""
    ax.figure.draw_without_rendering()
    return [text.get_text() for text in ax.texts]


FIGURES = [
    lambda ax: plotting.learning_curve({"a": (STEPS, CURVES)}, references={"best": 30}, ax=ax),
    lambda ax: plotting.interval_plot(SCORES, references={"best": 3}, ax=ax),
    lambda ax: plotting.profile_plot(SCORES, ax=ax),
    lambda ax: plotting.heatmap(np.eye(3), ax=ax),
    lambda ax: plotting.sensitivity_plot(SCORES, default="low", ax=ax),
    lambda ax: plotting.grid_values(np.eye(3), np.zeros((3, 3), int), ax=ax),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("figure", FIGURES)
def test_draws_in_the_axes_it_gets_or_makes_its_own(figure):
    _, (left, right) = plt.subplots(1, 2)
    assert figure(right) is right
    assert not left.has_data()
    ax = figure(None)
    assert ax.figure is not right.figure
    drawn(ax)


def test_importing_the_library_imports_no_plotting():
    code = "import sys, marl_lib; print({'matplotlib', 'seaborn', 'PIL'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_series_differ_in_grey_and_in_pattern():
    def lightness(colour):
        return 116 * np.cbrt(plotting._luminance(colour)) - 16

    neighbours = zip(plotting.PALETTE, plotting.PALETTE[1:], strict=False)
    assert min(abs(lightness(a) - lightness(b)) for a, b in neighbours) > 7
    assert len(set(plotting.PALETTE)) == len(set(plotting.DASHES)) == len(plotting.PALETTE)


def test_text_is_legible():
    def contrast(a, b):
        dark, light = sorted((plotting._luminance(a), plotting._luminance(b)))
        return (light + 0.05) / (dark + 0.05)

    assert contrast("white", "black") == pytest.approx(21)
    for colour in (*map(plotting._ink, plotting.PALETTE), plotting.INK, plotting.FAINT):
        assert contrast(colour, "white") >= 4.5
    for colours in (plotting.SEQUENTIAL, plotting.DIVERGING):
        for cell in colours(np.linspace(0, 1, 101)):
            assert contrast(plotting._text_on(cell), cell) >= 4.5


def test_sequential_colours_darken_throughout():
    shades = [plotting._luminance(c) for c in plotting.SEQUENTIAL(np.linspace(0, 1, 101))]
    assert (np.diff(shades) < 0).all()


def test_a_frame_can_be_fitted_to_what_comes_late():
    """A fall from the sky at the beginning must not flatten what learning is about."""
    steps = np.arange(11)
    late = np.array([[-900, -300, *np.linspace(-4, -2, 9)], [-900, -300, *np.linspace(-5, -3, 9)]])
    curves = {"a": (steps, late[:1]), "b": (steps, late[1:])}
    marks = {"best": -1.0, "by-chance": -800.0}
    ax = plotting.learning_curve(curves, references=marks, fit_from=0.2)
    low, high = ax.get_ylim()
    assert -6 < low < -5 and -1 < high < 0  # the late points and the near reference, no more
    texts = {t.get_text(): t.xy[1] for t in ax.texts}
    assert set(texts) == {"a", "b", "best", "↓ by-chance −800"} and texts["↓ by-chance −800"] == low
    assert plotting.learning_curve(curves, references=marks).get_ylim()[0] < -800
    slow = {"a": (steps, np.linspace(-900, -2, 11)[None])}  # uses the frame: left as it is
    assert plotting.learning_curve(slow, fit_from=0.2).get_ylim()[0] < -900
    with pytest.raises(ValueError, match="fit_from must be at least 0 and below 1, got 1"):
        plotting.learning_curve(curves, fit_from=1)


def test_learning_curve_is_the_iqm_and_its_band():
    ax = plotting.learning_curve({"DQN": (STEPS, CURVES)}, references={"planner": 29.0})
    line, reference = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), STEPS)
    np.testing.assert_allclose(line.get_ydata(), evaluation.iqm(CURVES, axis=0))
    assert list(reference.get_ydata()) == [29, 29]
    corners = ax.collections[0].get_paths()[0].vertices
    band = evaluation.pointwise_interval(CURVES)
    for edge in (band.low, band.high):
        assert all(np.isclose(corners, point).all(1).any() for point in zip(STEPS, edge))  # noqa: B905
    assert sorted(drawn(ax)) == ["DQN", "planner"]


def test_one_run_is_a_line_without_a_band():
    ax = plotting.learning_curve({"run": (STEPS, CURVES[:1])})
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), CURVES[0])
    assert not ax.collections


def test_names_never_overlap_and_keep_the_order_of_the_curves():
    names = ["a", "b", "c", "d", "e", "f"]
    curves = {name: (STEPS, CURVES + names.index(name) / 100) for name in "ceafbd"}
    ax = plotting.learning_curve(curves, references={"best": 40, "same": 40})
    drawn(ax)
    boxes = {text.get_text(): Text.get_window_extent(text) for text in ax.texts}
    ordered = [boxes[name] for name in [*names, "best", "same"]]
    for below, above in zip(ordered, ordered[1:], strict=False):
        assert below.y1 <= above.y0 + 1
    assert ax.bbox.y0 - 12 < ordered[0].y0 and ordered[-1].y1 < ax.bbox.y1 + 12
    assert all(box.x0 > ax.bbox.x1 for box in ordered)


def test_spread_by_hand():
    def spread(*wanted, low=-99, high=99):
        return list(plotting._spread(np.array(wanted, float), 10, low, high))

    assert spread(0, 50) == [0, 50]
    assert spread(20, 20) == [15, 25]
    assert spread(20, 20, 28) == pytest.approx([38 / 3, 68 / 3, 98 / 3])
    assert spread(20, 20, high=22) == [12, 22]
    assert spread(20, 20, low=18) == [18, 28]
    assert spread(1, 2, 3, low=0, high=5) == [0, 10, 20]


def test_interval_plot_shows_the_interval_and_every_run():
    ax = plotting.interval_plot(SCORES, references={"best": 3})
    for row, values in enumerate(SCORES.values()):
        runs, bar, point = ax.get_lines()[3 * row : 3 * row + 3]
        interval = evaluation.bootstrap_interval(values)
        np.testing.assert_array_equal(runs.get_xdata(), values)
        assert list(bar.get_xdata()) == [interval.low, interval.high]
        assert list(point.get_xdata()) == [interval.estimate]
        assert list(bar.get_ydata()) == [row, row]
    assert ax.yaxis_inverted()  # the first stands at the top
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["low", "high"]
    assert f"{interval:.2f}" in drawn(ax) and "best" in drawn(ax)
    assert ax.get_xlabel() == "return: IQM and 95 % interval"
    mean = plotting.interval_plot(SCORES, statistic=np.mean, confidence=0.8, xlabel="score")
    assert mean.get_xlabel() == "score: mean and 80 % interval"


def test_profile_plot_is_exact_and_names_the_best_first():
    ax = plotting.profile_plot(SCORES)
    for line, values in zip(ax.get_lines(), SCORES.values(), strict=True):
        x, y = line.get_data()
        assert line.get_drawstyle() == "steps-post" and set(values) <= set(x)
        np.testing.assert_allclose(y, [(values > t).mean() for t in x])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["high", "low"]


def test_heatmap_writes_each_number_on_its_colour():
    table = np.array([[0.25, -1.0], [np.nan, 2.0]])
    ax = plotting.heatmap(table, rows=["a", "b"], columns=["c", "d"], centre=0.0, fmt=".1f")
    assert drawn(ax) == ["0.2", "−1.0", "2.0"]
    mesh = ax.collections[0]
    assert mesh.get_clim() == (-2, 2)
    assert [text.get_color() for text in ax.texts] == ["black", "black", "white"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["c", "d"]
    assert plotting.heatmap(np.eye(2) / 2, limits=(0, 1)).collections[0].get_clim() == (0, 1)


def test_small_multiples_draw_a_series_alike_in_every_panel():
    series = {"a": (STEPS, CURVES), "b": (STEPS[:4], CURVES[:1, :4])}
    panels = {"loss": series, "entropy": {"b": series["b"]}, "kl": series}
    axes = plotting.small_multiples(panels, columns=2)
    axes[0].figure.draw_without_rendering()
    assert [ax.get_title(loc="left") for ax in axes] == list(panels)
    for ax, shown in zip(axes, panels.values(), strict=True):
        assert [line.get_label() for line in ax.get_lines()] == list(shown)
        look = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in ax.lines}
        assert look["b"] == (plotting.PALETTE[1], "--")
        assert len(ax.collections) == ("a" in shown)  # one run has no band
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), evaluation.iqm(CURVES, axis=0))
    assert [ax.get_xlabel() for ax in axes] == ["", "environment steps", "environment steps"]
    (spare,) = axes[0].figure.axes[3:]  # the key stands in the cell that is left
    assert [t.get_text() for t in spare.get_legend().get_texts()] == ["a", "b"]


def test_small_multiples_without_a_spare_cell_have_their_key_below():
    one = {"a": (STEPS, CURVES)}
    axes = plotting.small_multiples({"x": one | {"b": (STEPS, CURVES)}, "y": one}, columns=2)
    (key,) = axes[0].figure.legends
    axes[0].figure.draw_without_rendering()
    assert key.get_window_extent().y1 <= axes[0].get_tightbbox().y0 + 1
    alone = plotting.small_multiples({"x": one, "y": one})
    assert not alone[0].figure.legends and len(alone[0].figure.axes) == 2


def test_importance_plot_shows_mean_interval_and_every_run():
    table = np.array([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.6, 0.1, 0.3]])
    axes = plotting.importance_plot({"attention": table, "one": table[:1]}, ["x", "y", "z"])
    left, right = axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx(table.mean(0).tolist())
    assert [bar.get_width() for bar in right.patches] == pytest.approx(table[0].tolist())
    bar, runs = left.get_lines()[:2]
    interval = evaluation.bootstrap_interval(table[:, 0], np.mean)
    assert list(bar.get_xdata()) == [interval.low, interval.high]
    assert list(runs.get_xdata()) == [0.5, 0.7, 0.6]
    assert left.get_lines()[-1].get_xdata() == pytest.approx([1 / 3, 1 / 3])
    assert len(right.get_lines()) == 4  # of one run the dots and the equal share alone
    assert left.get_xlim() == right.get_xlim() == pytest.approx((0, 1.05 * 0.7))
    assert [t.get_text() for t in left.get_yticklabels()] == ["x", "y", "z"]
    assert left.yaxis_inverted() and [a.get_title(loc="left") for a in axes] == ["attention", "one"]


def test_sensitivity_plot_shows_each_value_in_its_place():
    scores = {"0.1": [1.0, 2, 3, 4], "1": [2.0, 3, 9, 4], "10": [7.0]}
    ax = plotting.sensitivity_plot(scores, default="1", xlabel="rate")
    trend, *rest = ax.get_lines()
    middles = [evaluation.iqm(v) for v in scores.values()]
    assert list(trend.get_ydata()) == middles and list(trend.get_xdata()) == [0, 1, 2]
    interval = evaluation.bootstrap_interval(scores["1"])
    bar, runs, point = rest[3:6]
    assert list(bar.get_ydata()) == [interval.low, interval.high]
    assert list(runs.get_ydata()) == scores["1"] and list(point.get_ydata()) == [middles[1]]
    assert len(rest) == 8  # a single run has no interval
    ticks = [t.get_text() for t in ax.get_xticklabels()]
    assert ticks == ["0.1", "1\n(default)", "10"]


def arrows(ax):
    """Return {(row, column): moves drawn there} from the arrows of a value map."""
    found = {}
    for note in ax.texts:
        if getattr(note, "arrow_patch", None) is not None:
            (x, y), (tip_x, tip_y) = note.xyann, note.xy
            cell = (round(y), round(x))
            move = (int(np.sign(round(tip_y - y, 6))), int(np.sign(round(tip_x - x, 6))))
            found.setdefault(cell, []).append(move)
    return found


def test_grid_values_points_where_the_policy_goes():
    values = np.array([[1.0, 2.0, 3.0], [0.5, np.nan, 4.0]])
    ax = plotting.grid_values(values, [[3, 3, 1], [0, 0, 4]])
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), values)
    right, down, up = (0, 1), (1, 0), (-1, 0)
    assert arrows(ax) == {(0, 0): [right], (0, 1): [right], (0, 2): [down], (1, 0): [up]}
    (dot,) = ax.get_lines()
    assert (dot.get_xdata()[0], round(dot.get_ydata()[0])) == (2, 1)
    (wall,) = ax.patches
    assert (wall.get_x(), wall.get_y(), wall.get_hatch()) == (0.5, 0.5, "////")
    assert [text for text in drawn(ax) if text] == ["1.0", "2.0", "3.0", "0.5", "4.0"]
    assert ax.yaxis_inverted()


def test_grid_values_draws_every_best_action():
    best = np.zeros((2, 2, 5), bool)
    best[0, 0, [1, 3]] = True
    assert arrows(plotting.grid_values(np.eye(2), best)) == {(0, 0): [(1, 0), (0, 1)]}
    assert arrows(plotting.grid_values(np.eye(2), -np.ones((2, 2), int))) == {}


def test_style_is_set_for_the_session():
    assert plt.rcParams["figure.facecolor"] == "white"
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0] == plotting.PALETTE[0]
    (line,) = plt.subplots()[1].plot([0, 1])
    assert to_hex(line.get_color()) == plotting.PALETTE[0].lower()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.learning_curve({}), "curves is empty"),
        (lambda: plotting.interval_plot({}), "scores is empty"),
        (lambda: plotting.profile_plot({str(i): [0, 1] for i in range(8)}), "8 series; 7 can"),
        (lambda: plotting.learning_curve({"a": (STEPS, CURVES[0])}), r"curves\['a'\] needs"),
        (lambda: plotting.learning_curve({"a": (STEPS[:3], CURVES)}), r"got \(3,\) and \(10, 12\)"),
        (lambda: plotting.small_multiples({}), "panels is empty"),
        (lambda: plotting.sensitivity_plot({}), "scores is empty"),
        (lambda: plotting.importance_plot({}, ["x"]), "no panels"),
        (lambda: plotting.importance_plot({"a": [[1, 2]]}, ["x"]), r"\(runs, 1\), got \(1, 2\)"),
        (lambda: plotting.heatmap([1, 2]), r"\(rows, columns\), got \(2,\)"),
        (lambda: plotting.grid_values([[np.nan]]), "must be numbers"),
        (lambda: plotting.grid_values(np.eye(2), [[0, 1], [2, 5]]), "actions -1 to 4"),
        (lambda: plotting.grid_values(np.eye(2), np.zeros((2, 2, 4), bool)), r"\(2, 2, 5\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

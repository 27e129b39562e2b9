"""Figures in one style, readable in grey and by the colour-blind.

Every function draws one figure, takes ``ax=None`` and returns the Axes; those of several panels
make their own figure and return an array of Axes. Series differ in three ways at once: hue (Okabe
and Ito's palette), lightness and line pattern; they are named beside the line, not in a legend.
Call :func:`use_style` once, at the top of a notebook.

Figures are white sheets in every theme: no colour of text has a contrast of 4.5 : 1 both on white
and on a dark page, so a transparent figure would read badly on one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from marl_lib import evaluation

# M. Okabe and K. Ito, "Color universal design", 2008, without the yellow that white swallows, in an
# order in which neighbours differ in lightness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#000000", "#D55E00", "#56B4E9", "#CC79A7")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.6)),
    (0, (1.2, 1.2)),
    (0, (7, 1.6, 1.2, 1.6)),
    (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2)),
    (0, (9, 2)),
    (0, (2.4, 2.4)),
)
INK, FAINT = "#1b1f24", "#5b6470"  # text and lines; what stands behind them (6 : 1 on white)
TEXT = 10.5  # points

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=PALETTE, linestyle=DASHES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": TEXT + 1,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 144,
    "figure.facecolor": "white",
    "figure.figsize": (6, 3.4),
    "font.size": TEXT,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.facecolor": "white",
    "text.color": INK,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}
# One hue from near white to near black: as a print in grey it keeps its order.
SEQUENTIAL = sns.blend_palette(["#f4f8fb", "#9ecbe6", "#0072B2", "#06304d"], as_cmap=True)
DIVERGING = sns.blend_palette(["#7a3500", "#D55E00", "#f7f7f7", "#0072B2", "#06304d"], as_cmap=True)

# (rows, columns) that the grid world's actions move: up, down, left, right, stay
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))


def use_style() -> None:
    """Set matplotlib's defaults to the book's style, for the rest of the session."""
    plt.rcParams.update(cast(Any, STYLE))


def learning_curve(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    references: Mapping[str, float] | None = None,
    xlabel: str = "environment steps",
    ylabel: str = "return",
    confidence: float = 0.95,
    fit_from: float = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw learning curves: the IQM over runs with its pointwise bootstrap band.

    Parameters
    ----------
    curves : dict of label -> (steps ``(points,)``, curves ``(runs, points)``)
        A single run is drawn as a line without a band.
    references : dict of label -> value
        Horizontal lines, such as the planner's return.
    xlabel, ylabel : str
    confidence : float
    fit_from : float
        Share of the steps, in [0, 1), before which curves may run out of the frame, and with them
        far references, which are then named with their value and an arrow. It is done only where
        all that learning changes later would otherwise fill less than a quarter of the frame.
    ax : Axes or None

    Returns
    -------
    Axes
    """
    _check(curves, "curves")
    if not 0 <= fit_from < 1:
        raise ValueError(f"fit_from must be at least 0 and below 1, got {fit_from}")
    ax = _axes(ax)
    labels, late = [], []
    for i, (name, (steps, table)) in enumerate(curves.items()):
        at, runs = np.asarray(steps, float), np.asarray(table, float)
        if runs.ndim != 2 or at.shape != runs.shape[1:]:
            raise ValueError(
                f"curves[{name!r}] needs steps (points,) and curves (runs, points), "
                f"got {at.shape} and {runs.shape}"
            )
        middle = _curve(ax, i, name, at, runs, confidence)
        labels.append((name, float(middle[-1]), *_look(i)))
        late.append(middle[at >= fit_from * at.max()])
    for name, value in (references or {}).items():
        ax.axhline(value, color=FAINT, linewidth=1, zorder=1)
        labels.append((name, value, FAINT, "-"))
    if fit_from:
        labels = _fit(ax, np.concatenate(late), labels)
    last = max(float(np.max(np.asarray(steps, float))) for steps, _ in curves.values())
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, last))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    _label_right(ax, labels)
    return ax


def small_multiples(
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    *,
    xlabel: str = "environment steps",
    columns: int = 3,
    confidence: float = 0.95,
) -> np.ndarray:
    """Draw several figures of the same series over training, one panel each, with one key.

    Parameters
    ----------
    panels : dict of title -> dict of label -> (steps ``(points,)``, curves ``(runs, points)``)
        As for :func:`learning_curve`; a label looks the same in every panel.
    xlabel : str
    columns : int
        Panels in a row.
    confidence : float

    Returns
    -------
    array of Axes, one for each panel
    """
    labels = list(dict.fromkeys(label for series in panels.values() for label in series))
    _check(dict.fromkeys(labels), "panels")
    figure, axes = _panels(len(panels), columns, (2.5, 2.1), key=len(labels) > 1)
    for ax, (title, series) in zip(axes, panels.items(), strict=True):
        for name, (steps, table) in series.items():
            at, runs = np.asarray(steps, float), np.asarray(table, float)
            _curve(ax, labels.index(name), name, at, runs, confidence)
        ax.set(title=title, xlim=(0, None))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_major_locator(MaxNLocator(4))
    for ax in axes[-columns:]:
        ax.set_xlabel(xlabel)
    if len(labels) > 1:
        lines = {line.get_label(): line for ax in axes for line in ax.get_lines()}
        spare = figure.axes[len(panels) :]
        where: Any = figure
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": 3}
        if spare:
            where, place = spare[0], {"loc": "center left"}
        where.legend([lines[name] for name in labels], labels, handlelength=2.6, **place)
    return axes


def interval_plot(
    scores: Mapping[str, ArrayLike],
    *,
    references: Mapping[str, float] | None = None,
    statistic: Callable[..., Any] = evaluation.iqm,
    xlabel: str = "return",
    confidence: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Draw a statistic and its bootstrap interval, one row an algorithm, first at the top.

    Every run is a pale dot below its row, and the figures stand at the right. The rows are told
    apart by their names, so there may be more of them than colours, which then come again.

    Parameters
    ----------
    scores : dict of label -> ``(runs,)`` or ``(runs, tasks)``
    references : dict of label -> value
        Vertical lines.
    statistic, confidence
        As in :func:`marl_lib.evaluation.bootstrap_interval`.
    xlabel : str
        What is scored; the name of the statistic is added.
    ax : Axes or None

    Returns
    -------
    Axes
    """
    _check(scores, "scores", most=None)
    ax = _axes(ax, (6, 1.1 + 0.42 * len(scores)))
    intervals = []
    for row, (name, values) in enumerate(scores.items()):
        interval = evaluation.bootstrap_interval(values, statistic, confidence)
        runs = np.ravel(values)
        colour, _ = _look(row)
        ax.plot(runs, np.full(len(runs), row + 0.27), "o", color=colour, alpha=0.35, ms=4.5, mew=0)
        ax.plot([interval.low, interval.high], [row, row], "-", color=colour, linewidth=4)
        ax.plot(interval.estimate, row, "o", color="white", mec=colour, mew=2, ms=8, label=name)
        intervals.append(interval)
    digits = max(interval.decimals for interval in intervals)
    for row, interval in enumerate(intervals):
        _beside(ax, row, f"{interval:z.{digits}f}".replace("-", "−"))
    what = "IQM" if statistic is evaluation.iqm else statistic.__name__
    ax.set(xlabel=f"{xlabel}: {what} and {100 * confidence:g} % interval")
    ax.set(ylim=(len(scores) - 0.4, -0.6))
    ax.set_yticks(range(len(scores)), list(scores))
    ax.tick_params("y", length=0)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    for name, value in (references or {}).items():
        ax.axvline(value, color=FAINT, linewidth=1, zorder=1)
        ax.annotate(
            name, (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha="center", color=FAINT,
        )  # fmt: skip
    return ax


def profile_plot(
    scores: Mapping[str, ArrayLike],
    *,
    thresholds: ArrayLike | None = None,
    xlabel: str = "return τ",
    confidence: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Draw performance profiles: the share of runs that score above each threshold.

    Parameters
    ----------
    scores : dict of label -> ``(runs,)`` or ``(runs, tasks)``
    thresholds : ``(K,)`` or None
        By default every score that occurs, which draws the profiles exactly.
    xlabel : str
    confidence : float
        Of the pointwise band.
    ax : Axes or None

    Returns
    -------
    Axes
    """
    _check(scores, "scores")
    ax = _axes(ax)
    if thresholds is None:
        pooled = np.concatenate([np.ravel(values) for values in scores.values()])
        margin = 0.03 * (np.ptp(pooled) or 1)
        thresholds = np.unique([pooled.min() - margin, *pooled, pooled.max() + margin])
    tau = np.asarray(thresholds, float)
    for i, (name, values) in enumerate(scores.items()):
        band = evaluation.performance_profile(values, tau, confidence)
        colour, dash = _look(i)
        ax.fill_between(
            tau, band.low, band.high, step="post", color=colour, alpha=0.15, linewidth=0
        )
        ax.step(tau, band.estimate, where="post", color=colour, linestyle=dash, label=name)
    ax.set(xlabel=xlabel, ylabel="share of runs above τ", xlim=(tau[0], tau[-1]))
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    # the curves all end at 0, so their names stand beside the axes, the best at the top
    lines = dict(zip(scores, ax.get_lines()[-len(scores) :], strict=True))
    order = sorted(scores, key=lambda name: -np.asarray(scores[name], float).mean())
    ax.legend([lines[name] for name in order], order, loc="center left", bbox_to_anchor=(1, 0.5),
              handlelength=2.6)  # fmt: skip
    return ax


def heatmap(
    values: ArrayLike,
    *,
    rows: Sequence[str] | str = "auto",
    columns: Sequence[str] | str = "auto",
    xlabel: str = "",
    ylabel: str = "",
    label: str = "",
    limits: tuple[float, float] | None = None,
    centre: float | None = None,
    fmt: str = ".2f",
    ax: Axes | None = None,
) -> Axes:
    """Draw a matrix with the number in each cell: attention weights, a table of values.

    Parameters
    ----------
    values : ``(rows, columns)``
        NaN leaves a cell empty.
    rows, columns : list of str
        Names along the two sides; by default their indices.
    xlabel, ylabel, label : str
        What the columns, the rows and the numbers are.
    limits : (low, high) or None
        Ends of the colour scale; attention wants ``(0, 1)``.
    centre : float or None
        A value that should be white, with blue above and orange below.
    fmt : str
        Format of the numbers.
    ax : Axes or None

    Returns
    -------
    Axes
    """
    table = _matrix(values)
    names = [] if isinstance(columns, str) else columns
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    width, height = _sheet(table.shape, max(0.62, 0.1 * longest), 0.42)
    beside = [] if isinstance(rows, str) else rows  # their labels take room from the cells
    ax = _axes(ax, (width + 0.07 * max(map(len, beside), default=0), height))
    low, high = limits or (np.nanmin(table), np.nanmax(table))
    if centre is not None:
        radius = max(centre - low, high - centre)
        low, high = centre - radius, centre + radius
    sns.heatmap(
        table,
        ax=ax,
        annot=np.array([[_number(value, fmt) for value in row] for row in table.tolist()]),
        fmt="",
        cmap=SEQUENTIAL if centre is None else DIVERGING,
        vmin=low,
        vmax=high,
        linewidths=1.5,
        linecolor="white",
        xticklabels=columns,
        yticklabels=rows,
        cbar_kws={"label": label, "shrink": 0.9},
    )
    shades = ax.collections[-1].to_rgba(table)
    for text in ax.texts:
        column, row = (int(v) for v in text.get_position())
        text.set_color(_text_on(shades[row, column]))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.tick_params(length=0, rotation=0)
    return ax


def importance_plot(
    importance: Mapping[str, ArrayLike],
    features: Sequence[str],
    *,
    columns: int = 3,
    confidence: float = 0.95,
) -> np.ndarray:
    """Draw how measures share importance among features: one panel a measure, one bar a feature.

    A bar is the mean over runs, the line on it the bootstrap interval of the mean, and each run a
    dot; the vertical line is where all features would be equal.

    Parameters
    ----------
    importance : dict of measure -> ``(runs, features)``
        Shares that sum to one over the features.
    features : list of str
    columns : int
        Panels in a row.
    confidence : float

    Returns
    -------
    array of Axes, one for each measure
    """
    tables = {name: np.asarray(values, float) for name, values in importance.items()}
    for name, table in tables.items():
        if table.ndim != 2 or table.shape[1] != len(features):
            shape = f"(runs, {len(features)})"
            raise ValueError(f"importance[{name!r}] must have shape {shape}, got {table.shape}")
    columns = min(columns, len(tables))
    height = 0.75 + 0.26 * len(features)
    _, axes = _panels(len(tables), columns, (2.5, height), shared=True)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        for row, values in enumerate(table.T):
            ax.barh(row, values.mean(), height=0.62, color=PALETTE[5], zorder=2)
            if len(values) > 1:
                interval = evaluation.bootstrap_interval(values, np.mean, confidence)
                ax.plot([interval.low, interval.high], [row, row], "-", color=PALETTE[0], lw=3)
            at = np.full(len(values), row + 0.2)
            ax.plot(values, at, "o", color=INK, alpha=0.4, ms=3.5, mew=0)
        ax.axvline(1 / len(features), color=FAINT, linewidth=1, linestyle=DASHES[1])
        ax.set(title=name, ylim=(len(features) - 0.5, -0.5))
        ax.set_yticks(range(len(features)), features)
        ax.tick_params("y", length=0)
        ax.grid(axis="y", visible=False)
        ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %", decimals=0))
        ax.xaxis.set_major_locator(MaxNLocator(3, prune="upper"))  # clear of the next panel
    for ax in axes[-columns:]:
        ax.set_xlabel("share")
    axes[0].set_xlim(0, 1.05 * max(table.max() for table in tables.values()))  # they share it
    return axes


def sensitivity_plot(
    scores: Mapping[str, ArrayLike],
    *,
    default: str | None = None,
    statistic: Callable[..., Any] = evaluation.iqm,
    xlabel: str = "",
    ylabel: str = "return",
    confidence: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Draw a statistic and its bootstrap interval for each value of one setting.

    Values stand side by side at equal distances, in the order given; each run is a pale dot.

    Parameters
    ----------
    scores : dict of value -> ``(runs,)``
    default : str or None
        The value that the rest of an experiment uses; it is named below the axis.
    statistic, confidence
        As in :func:`marl_lib.evaluation.bootstrap_interval`.
    xlabel, ylabel : str
    ax : Axes or None

    Returns
    -------
    Axes
    """
    if not scores:
        raise ValueError("scores is empty: give at least one value and its runs")
    ax = _axes(ax, (max(3.2, 0.8 + 0.9 * len(scores)), 2.8))
    at = np.arange(len(scores))
    middles = [float(statistic(np.asarray(values, float))) for values in scores.values()]
    ax.plot(at, middles, "-", color=PALETTE[0], linewidth=1)
    for x, values, middle in zip(at, scores.values(), middles, strict=True):
        runs = np.ravel(values)
        if len(runs) > 1:
            interval = evaluation.bootstrap_interval(runs, statistic, confidence)
            ax.plot([x, x], [interval.low, interval.high], "-", color=PALETTE[0], linewidth=4)
        ax.plot(np.full(len(runs), x + 0.17), runs, "o", color=PALETTE[0], alpha=0.35, ms=4.5,
                mew=0)  # fmt: skip
        ax.plot(x, middle, "o", color="white", mec=PALETTE[0], mew=2, ms=8)
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.5, len(scores) - 0.5))
    ax.set_xticks(at, [f"{v}\n(default)" if v == default else v for v in scores])
    ax.tick_params("x", length=0)
    ax.grid(axis="x", visible=False)
    return ax


def grid_values(
    values: ArrayLike,
    policy: ArrayLike | None = None,
    *,
    label: str = "value",
    fmt: str = ".1f",
    ax: Axes | None = None,
) -> Axes:
    """Draw the value of each cell of a grid, with arrows for the greedy policy.

    Parameters
    ----------
    values : ``(rows, columns)``
        Row 0 is at the top. NaN is a wall.
    policy : ``(rows, columns)`` int, or ``(rows, columns, 5)`` bool, or None
        The action in each cell: 0 up, 1 down, 2 left, 3 right, 4 stay (a dot), -1 nothing; or which
        of the five actions are best, where several are.
    label : str
        What the numbers are.
    fmt : str
        Format of the numbers.
    ax : Axes or None

    Returns
    -------
    Axes
    """
    table = _matrix(values)
    best = _best_actions(policy, table.shape)
    ax = _axes(ax, _sheet(table.shape, 0.62, 0.62))
    picture = ax.imshow(table, cmap=SEQUENTIAL)
    shades = picture.to_rgba(table)
    for row, column in np.ndindex(table.shape):
        value = float(table[row, column])
        if np.isnan(value):
            ax.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, hatch="////", fc="white", ec=FAINT, lw=0)
            )
            continue
        colour = _text_on(shades[row, column])
        moves = [m for m, is_best in zip(MOVES, best[row, column], strict=True) if is_best]
        middle = row - 0.14 if moves else row
        for down, right in moves:
            _arrow(ax, column, middle, right, down, colour)
        ax.text(column, row + 0.33 if moves else row, _number(value, fmt), ha="center",
                va="center", fontsize=TEXT - 2, color=colour)  # fmt: skip
    edges = [np.arange(n + 1) - 0.5 for n in table.shape]
    ax.set_xticks(range(table.shape[1]))
    ax.set_yticks(range(table.shape[0]))
    ax.hlines(edges[0], *edges[1][[0, -1]], color="white", linewidth=1.5)
    ax.vlines(edges[1], *edges[0][[0, -1]], color="white", linewidth=1.5)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="column", ylabel="row")
    bar = ax.figure.colorbar(picture, ax=ax, label=label, shrink=0.9)
    bar.outline.set_visible(False)
    return ax


def _axes(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """Return ``ax``, or the axes of a new figure."""
    return plt.subplots(figsize=size)[1] if ax is None else ax


def _panels(
    count: int, columns: int, size: tuple[float, float], key: bool = False, shared: bool = False
) -> tuple[Figure, np.ndarray]:
    """Return a new figure and ``count`` axes in rows, what is left of the last row blank.

    ``size`` is a panel's; ``key`` makes room below for a legend where no cell is left for it;
    ``shared`` gives all panels the same limits.
    """
    if count == 0:
        raise ValueError("no panels: give at least one title and its series")
    columns = min(columns, count)
    rows = -(-count // columns)
    room = 0.5 if key and rows * columns == count else 0
    figure, grid = plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows + room), squeeze=False,
        sharex=shared, sharey=shared,
    )  # fmt: skip
    for ax in grid.flat[count:]:
        ax.axis("off")
    for ax in grid.flat[max(0, count - columns) : count]:
        ax.tick_params("x", labelbottom=True)  # shared axes hide it above a blank cell
    return figure, grid.flat[:count]


def _curve(
    ax: Axes, i: int, name: str, at: np.ndarray, runs: np.ndarray, confidence: float
) -> np.ndarray:
    """Draw series i with its band if there are several runs; return its middle, (points,)."""
    colour, dash = _look(i)
    middle = runs[0]
    if len(runs) > 1:
        band = evaluation.pointwise_interval(runs, confidence=confidence)
        ax.fill_between(at, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
        middle = band.estimate
    ax.plot(at, middle, color=colour, linestyle=dash, label=name)
    return middle


def _fit(ax: Axes, late: np.ndarray, labels: list) -> list[tuple[str, float, str, Any]]:
    """Fit the vertical axis to the late points if they use little of it; return the new labels."""
    (low, high), size = ax.get_ylim(), np.ptp(late)
    if size == 0 or size > (high - low) / 4:
        return labels
    near = [y for _, y, *_ in labels if late.min() - 2 * size <= y <= late.max() + 2 * size]
    low, high = min(near + [late.min()]), max(near + [late.max()])
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    ax.set_ylim(low, high)
    fitted = []
    for name, y, *look in labels:
        arrow = "↓ " if y < low else "↑ " if y > high else ""
        far = f"{y:.3g}".replace("-", "−")  # the name keeps its hyphens
        text = f"{arrow}{name} {far}" if arrow else name
        fitted.append((text, float(np.clip(y, low, high)), *look))
    return fitted


def _sheet(shape: tuple[int, ...], wide: float, high: float) -> tuple[float, float]:
    """Return a figure size in inches that gives each cell of a table its room."""
    return 1.7 + wide * shape[1], 0.8 + high * shape[0]


def _look(i: int) -> tuple[str, Any]:
    """Return the colour and the line pattern of series i."""
    return PALETTE[i % len(PALETTE)], DASHES[i % len(DASHES)]


def _luminance(colour: Any) -> float:
    """Return the relative luminance of a colour, 0 black to 1 white (WCAG 2.2)."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _ink(colour: str) -> tuple[float, ...]:
    """Return the colour, darkened until text in it has a contrast of 4.5 : 1 on white."""
    rgb = np.array(to_rgb(colour))
    while 1.05 / (_luminance(rgb) + 0.05) < 4.5:
        rgb *= 0.96
    return tuple(rgb)


def _text_on(background: Any) -> str:
    """Return white or black, whichever has the higher contrast (4.5 : 1 or more)."""
    return "white" if _luminance(background) < 0.179 else "black"


def _number(value: float, fmt: str) -> str:
    """Format a number with a minus sign as long as the axes' own."""
    return format(value, fmt).replace("-", "−")


def _label_right(ax: Axes, labels: list[tuple[str, float, str, Any]]) -> None:
    """Name each line (text, y, colour, pattern) at the right edge, apart where they end together.

    The leader from the line to its name repeats the line's pattern and so serves as its key.
    """
    ax.set_ylim(ax.get_ylim())  # later changes would move the lines away from their names
    ax.figure.canvas.figure.draw_without_rendering()  # lets the layout settle the axes' height
    points = ax.figure.dpi / 72
    order = sorted(labels, key=lambda item: item[1])
    wanted = np.array([ax.transData.transform((0, y))[1] / points for _, y, _, _ in order])
    ends = ax.transAxes.transform([(0, 0), (0, 1)])[:, 1] / points
    placed = _spread(wanted, 1.3 * TEXT, *ends)
    for (name, y, colour, dash), shift in zip(order, placed - wanted, strict=True):
        ax.annotate(
            name, (1, y), xycoords=("axes fraction", "data"), xytext=(30, shift),
            textcoords="offset points", va="center", color=_ink(colour), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linestyle": dash,
                        "linewidth": 2 if colour != FAINT else 1, "shrinkA": 2, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def _spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Return increasing positions at least ``gap`` apart, as near to the wanted ones as can be.

    Least squares under order constraints: subtract the gaps, then pool neighbours that violate the
    order into their mean (isotonic regression), then put the gaps back. They stay between low and
    high if there is room, or stand from ``low`` upwards.
    """
    ramp = gap * np.arange(len(wanted))
    pools: list[list[float]] = []
    for value in wanted - ramp:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    free = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])
    return np.clip(free, low, max(low, high - ramp[-1])) + ramp


def _beside(ax: Axes, y: float, text: str) -> None:
    """Write a text to the right of the axes at height ``y``."""
    ax.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), xytext=(8, 0),
        textcoords="offset points", va="center", color=INK, annotation_clip=False,
    )  # fmt: skip


def _arrow(ax: Axes, x: float, y: float, right: int, down: int, colour: str) -> None:
    """Draw one action of a cell whose middle is (x, y): an arrow outwards, or a dot for stay."""
    if right == down == 0:
        ax.plot(x, y, "o", color=colour, ms=4)
        return
    ax.annotate(
        "", (x + 0.27 * right, y + 0.27 * down), (x, y),
        arrowprops={"arrowstyle": "-|>,head_width=.22,head_length=.3", "color": colour,
                    "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0},
    )  # fmt: skip


def _best_actions(policy: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    """Return which actions to draw in each cell, ``(rows, columns, 5)`` bool."""
    actions = np.arange(len(MOVES))
    if policy is None:
        return np.zeros((*shape, len(MOVES)), bool)
    chosen = np.asarray(policy)
    if chosen.shape == shape and np.isin(chosen, [-1, *actions]).all():
        return chosen[..., None] == actions
    if chosen.shape == (*shape, len(MOVES)) and chosen.dtype == bool:
        return chosen
    raise ValueError(
        f"policy must be actions -1 to 4 of shape {shape} or bool of shape {(*shape, len(MOVES))}, "
        f"got {chosen.dtype} of shape {chosen.shape}"
    )


def _matrix(values: ArrayLike) -> np.ndarray:
    table = np.asarray(values, float)
    if table.ndim != 2 or np.isnan(table).all():
        raise ValueError(f"values must be numbers of shape (rows, columns), got {table.shape}")
    return table


def _check(series: Mapping[str, Any], name: str, most: int | None = len(PALETTE)) -> None:
    if not series:
        raise ValueError(f"{name} is empty: give at least one label and its data")
    if most is not None and len(series) > most:
        raise ValueError(f"{name} has {len(series)} series; {most} can be told apart")

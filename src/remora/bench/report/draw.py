"""Draws a figure with matplotlib: as SVG that takes its ink from the page around it, or as PNG on white."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from functools import singledispatch
from itertools import cycle
from math import log10
from typing import TYPE_CHECKING, Any

from remora.bench.report.figures import Bars, Figure, Heat, Lines, Panel, Scatter, Value, Verdicts
from remora.errors import RemoraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe and Ito's palette: told apart by colour-blind readers too, and on black as on white.
VERMILLION, ORANGE, BLUE, GREEN, SKY, PURPLE, GREY = (
    "#d55e00",
    "#e69f00",
    "#0072b2",
    "#009e73",
    "#56b4e9",
    "#cc79a7",
    "#888888",
)
COLOURS = {
    "blind": VERMILLION,
    "naive": VERMILLION,
    "full KV both ways": PURPLE,
    "split": ORANGE,
    "delta KV": ORANGE,
    "aware": SKY,
    "handle": SKY,
    "semantic": BLUE,
    "resident": BLUE,
    "remora": BLUE,
    "remote": BLUE,
    "local": GREY,
}
OTHERS = (GREEN, PURPLE, ORANGE, SKY, VERMILLION, BLUE)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH_IN, PNG_DPI = 8.4, 200
# Two colours that nothing else has stand for the page's own until the SVG is written.
INK, GRID = "#010203", "#040506"
ON_WHITE = {"ink": "#222222", "grid": "#dddddd"}
# A drawing inside a page: as wide as its place, without names that two drawings share or that only a file needs.
_SVG_EDITS = (
    (r"<metadata>.*?</metadata>", ""),
    (r'<g id="[^"]*"', "<g"),
    (r"^<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg width="100%" role="img" \1>'),
    (r"'DejaVu Sans',[^;\"]*sans-serif", "'DejaVu Sans', Verdana, sans-serif"),
    (r" transform=\"rotate\(-0 [^\"]*\"", ""),
)
SLOWER, SOME, HALF, MOST = "#f3c7a8", "#dfe9f1", "#86b9dc", "#0072b2"  # of a heat map


class NoPlots(RemoraError):
    """matplotlib is not installed."""


def svg(figure: Figure) -> str:
    """The drawing as an <svg> element: text in the page's colour, no background, equal for equal figures."""
    canvas = _drawn(figure, INK, GRID)
    out = io.StringIO()
    with _style(INK, GRID):
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    for pattern, instead in _SVG_EDITS:
        text = re.sub(pattern, instead, text, flags=re.DOTALL)
    return text.replace(INK, "currentColor").replace(GRID, "var(--grid)")


def png(figure: Figure) -> bytes:
    """The same on white, for a page that cannot hold SVG."""
    out = io.BytesIO()
    canvas = _drawn(figure, **ON_WHITE)
    with _style(**ON_WHITE):
        canvas.savefig(out, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def _style(ink: str, grid: str) -> Any:
    import matplotlib

    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "remora",
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": ink,
            "axes.labelcolor": ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": grid,
            "grid.linewidth": 0.7,
            "text.color": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "legend.frameon": False,
            "hatch.linewidth": 0.6,
            "lines.linewidth": 1.8,
            "lines.markersize": 6,
        }
    )


def _drawn(figure: Figure, ink: str, grid: str) -> Canvas:
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise NoPlots("the report draws with matplotlib: pip install 'remora[bench]'") from None
    with _style(ink, grid):
        canvas = Canvas(layout="constrained")
        _draw(figure, canvas, ink)
    return canvas


@singledispatch
def _draw(figure: Any, canvas: Canvas, ink: str) -> None:
    raise TypeError(f"nobody draws a {type(figure).__name__}")


def _coloured(names: Iterable[str]) -> dict[str, str]:
    """A colour for each: a known arm its own, the others what is free. All differ, as long as there are enough."""
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name not in COLOURS):
        wanted = COLOURS.get(name, OTHERS[len(found) % len(OTHERS)])
        free = [colour for colour in OTHERS if colour not in found.values()]
        found[name] = free[0] if free and (wanted in found.values() or name not in COLOURS) else wanted
    return found


def _short(number: float) -> str:
    """Three digits, with k, M and G for what is large."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _logarithmic(axis: Any, decades: float) -> None:
    """Ticks where a reader looks for them: 1, 2, 5 of a few decades, else powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=12))
    axis.set_major_formatter(lambda number, _: _short(number))
    axis.set_minor_formatter(NullFormatter())


@_draw.register(Bars)
def _bars(figure: Bars, canvas: Canvas, ink: str) -> None:
    """Upright bars have a legend, those that lie have their names beside them."""
    height_in = 0.7 + 0.24 * len(figure.values) + 0.42 * len(figure.groups) if figure.sideways else 4.0
    canvas.set_size_inches(WIDTH_IN, height_in)
    axes = canvas.subplots()
    colours = _coloured(figure.arms)
    at, centres, names = 0.0, [], []
    for group in figure.groups:
        arms = [arm for arm in figure.arms if (group, arm) in figure.values]
        colours = _coloured(arms) if figure.sideways else colours
        if figure.sideways:
            at += 1
            axes.annotate(
                group,
                (0, at - 0.9),
                (2, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                weight="bold",
            )
        for arm in arms:
            _bar(axes, figure, at, figure.values[group, arm], colours[arm], ink)
            names.append((at, arm))
            at += 1
        centres.append((at - (len(arms) + 1) / 2, group))
        at += 0.5
    _bar_axes(axes, figure, names if figure.sideways else centres, ink)
    if not figure.sideways:
        for arm in figure.arms:
            axes.bar([0], [0], color=colours[arm], label=arm)
        canvas.legend(loc="outside upper left", ncols=6, handlelength=1.0, columnspacing=1.4)


def _bar(axes: Axes, figure: Bars, at: float, shown: Value, colour: str, ink: str) -> None:
    end = max(shown.high, shown.median)
    look = {"color": colour, "hatch": "////" if shown.simulated else "", "edgecolor": ink, "linewidth": 0}
    whisker: Any = {"ecolor": ink, "capsize": 2.5, "elinewidth": 1.0, "fmt": "none"}
    text = _short(shown.median) + ("†" if shown.alone else "")
    beside: Any = {"textcoords": "offset points", "fontsize": 8.5}
    if figure.sideways:
        axes.barh(at, shown.median, height=0.84, **look)
        axes.errorbar(shown.median, at, xerr=_whiskers(shown), **whisker)
        axes.annotate(text, (end, at), (4, 0), va="center_baseline", **beside)
    else:
        axes.bar(at, shown.median, width=0.84, **look)
        axes.errorbar(at, shown.median, yerr=_whiskers(shown), **whisker)
        axes.annotate(text, (at, end), (0, 3), ha="center", **beside)


def _whiskers(shown: Value) -> list[list[float]] | None:
    return None if shown.spread is None or shown.simulated else [[side] for side in shown.spread]


def _bar_axes(axes: Axes, figure: Bars, names: list[tuple[float, str]], ink: str) -> None:
    medians = [shown.median for shown in figure.values.values()]
    low, high = min(medians), max(max(shown.high, shown.median) for shown in figure.values.values())
    wide = low > 0 and high / low > 20
    value_axis, group_axis = (axes.xaxis, axes.yaxis) if figure.sideways else (axes.yaxis, axes.xaxis)
    if figure.sideways:
        axes.set_ylim(names[-1][0] + 0.7, -0.4)
    set_limits = axes.set_xlim if figure.sideways else axes.set_ylim
    if wide:
        (axes.set_xscale if figure.sideways else axes.set_yscale)("log")
        set_limits(low / 3, high * (4 if figure.sideways else 2))
        _logarithmic(value_axis, log10(high / low))
    else:
        set_limits(0, high * 1.14)
        value_axis.set_major_formatter(lambda number, _: _short(number))
    value_axis.set_label_text(figure.label + (" (log)" if wide else ""))
    group_axis.set_ticks([at for at, _ in names], [name for _, name in names])
    group_axis.set_tick_params(length=0)
    group_axis.grid(visible=False)
    if figure.one:
        line = axes.axvline if figure.sideways else axes.axhline
        line(1, color=ink, linewidth=1, linestyle=(0, (4, 3)))


@_draw.register(Lines)
def _lines(figure: Lines, canvas: Canvas, ink: str) -> None:
    n_columns = min(len(figure.panels), 3 if len(figure.panels) not in (2, 4) else 2)
    n_rows = -(-len(figure.panels) // n_columns)
    canvas.set_size_inches(WIDTH_IN, 0.5 + (3.4 if n_columns == 1 else 2.6) * n_rows)
    names = tuple(dict.fromkeys(line.name for panel in figure.panels for line in panel.lines))
    colours = _coloured(names)
    markers = dict(zip(names, cycle(MARKERS), strict=False))
    all_axes = canvas.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axes, panel in zip(all_axes, figure.panels, strict=False):
        _panel(axes, panel, colours, markers)
    for axes in all_axes[len(figure.panels) :]:
        axes.set_visible(False)
    handles = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    ordered = [name for name in names if name in handles]
    canvas.legend(
        [handles[name] for name in ordered], ordered, loc="outside upper left", ncols=min(len(ordered), 5)
    )


def _panel(axes: Axes, panel: Panel, colours: dict[str, str], markers: dict[str, str]) -> None:
    for line in panel.lines:
        colour = colours[line.name]
        xs = [x for x, _ in line.points]
        axes.plot(xs, [shown.median for _, shown in line.points], color=colour, linewidth=1.6)
        for x, shown in line.points:
            sure = not shown.alone and not shown.simulated
            axes.errorbar(
                [x],
                [shown.median],
                yerr=_whiskers(shown),
                color=colour,
                marker=markers[line.name],
                markerfacecolor=colour if sure else "none",
                capsize=2.5,
                elinewidth=1.0,
                linestyle="none",
            )
        axes.plot([], [], color=colour, marker=markers[line.name], label=line.name)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label + (" (log)" if panel.log_x else ""))
    axes.set_ylabel(panel.y_label + (" (log)" if panel.log_y else ""))
    xs = sorted({x for line in panel.lines for x, _ in line.points})
    if panel.log_x:
        axes.set_xscale("log", base=2)
    axes.set_xticks(xs if len(xs) <= 6 else xs[::2], labels=None, minor=False)
    axes.xaxis.set_major_formatter(lambda number, _: _short(number))
    if panel.log_y:
        medians = [shown.median for line in panel.lines for _, shown in line.points]
        axes.set_yscale("log")
        _logarithmic(axes.yaxis, log10(max(medians) / min(medians)))
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda number, _: _short(number))
    axes.margins(x=0.08)


@_draw.register(Heat)
def _heat(figure: Heat, canvas: Canvas, ink: str) -> None:
    from matplotlib.patches import Patch, Rectangle

    n = len(figure.grids)
    canvas.set_size_inches(WIDTH_IN, 1.5 + 0.34 * len(figure.ys))
    for axes, grid in zip(canvas.subplots(1, n, squeeze=False, sharey=True)[0], figure.grids, strict=True):
        for (x, y), shown in grid.values.items():
            at = figure.xs.index(x), figure.ys.index(y)
            fill = _reached(shown.median)
            axes.add_patch(Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, facecolor=fill, edgecolor="none"))
            if not shown.simulated:
                frame = Rectangle((at[0] - 0.44, at[1] - 0.42), 0.88, 0.84, fill=False, edgecolor="#222222")
                frame.set_linewidth(1.2)
                axes.add_patch(frame)
            text = _percent(shown.median)
            colour = "white" if fill == MOST else "#222222"
            axes.text(
                *at, text + ("†" if shown.alone else ""), ha="center", va="center", color=colour, fontsize=8.5
            )
        axes.set_xlim(-0.5, len(figure.xs) - 0.5)
        axes.set_ylim(-0.5, len(figure.ys) - 0.5)
        axes.set_xticks(range(len(figure.xs)), [name.replace(" Gbit/s", "") for name in figure.xs])
        axes.set_yticks(range(len(figure.ys)), figure.ys)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_title(grid.title)
        axes.set_xlabel(figure.x_label)
    canvas.axes[0].set_ylabel(figure.y_label)
    keys = ((MOST, "90 % and more"), (HALF, "50 to 90 %"), (SOME, "0 to 50 %"), (SLOWER, "slower"))
    canvas.legend(
        handles=[Patch(facecolor=colour, label=label) for colour, label in keys],
        loc="outside upper left",
        ncols=4,
        handlelength=1.0,
    )


def _percent(share: float) -> str:
    if share < -9.995:
        return f"{1 - share:.0f}× time"
    return f"{share:.1%}" if share >= 0.985 else f"{share:.0%}"


def _reached(share: float) -> str:
    if share >= 0.9:
        return MOST
    if share >= 0.5:
        return HALF
    return SOME if share >= 0 else SLOWER


@_draw.register(Scatter)
def _scatter(figure: Scatter, canvas: Canvas, ink: str) -> None:
    """Their ratio, so that bands are as wide at a millisecond as at a minute."""
    canvas.set_size_inches(WIDTH_IN, 4.2)
    axes = canvas.subplots()
    measured = [shown.median for _, pairs in figure.clouds for shown, _ in pairs]
    ratios = [predicted / shown.median for _, pairs in figure.clouds for shown, predicted in pairs]
    for band, strength in ((0.25, 0.12), (0.10, 0.2)):
        axes.axhspan(1 - band, 1 + band, color=GREY, alpha=strength, linewidth=0, label=f"within {band:.0%}")
    axes.axhline(1, color=ink, linewidth=0.8)
    colours = _coloured(name for name, _ in figure.clouds)
    for (name, pairs), marker in zip(figure.clouds, cycle(MARKERS), strict=False):
        for shown, predicted in pairs:
            axes.errorbar(
                [shown.median],
                [predicted / shown.median],
                yerr=_ratio_whiskers(shown, predicted),
                color=colours[name],
                marker=marker,
                markerfacecolor="none" if shown.alone else colours[name],
                elinewidth=0.8,
                linestyle="none",
                alpha=0.85,
            )
        axes.plot([], [], color=colours[name], marker=marker, linestyle="none", label=name)
    axes.set_xscale("log")
    _logarithmic(axes.xaxis, log10(max(measured) / min(measured)))
    axes.set_ylim(min(0.7, *ratios) - 0.05, max(1.3, *ratios) + 0.05)
    axes.set_xlabel("measured, ms (log)")
    axes.set_ylabel("predicted / measured")
    canvas.legend(loc="outside upper left", ncols=4, columnspacing=1.4)


def _ratio_whiskers(shown: Value, predicted: float) -> list[list[float]] | None:
    if shown.spread is None or shown.simulated:
        return None
    ratio = predicted / shown.median
    return [[ratio - predicted / shown.high], [predicted / shown.low - ratio]]


@_draw.register(Verdicts)
def _verdicts(figure: Verdicts, canvas: Canvas, ink: str) -> None:
    n = len(figure.verdicts)
    canvas.set_size_inches(WIDTH_IN, 1.3 + 0.24 * n)
    axes = canvas.subplots()
    low, high = 0.05, 5.0
    for y, verdict in enumerate(figure.verdicts):
        at = min(max(high if verdict.margin is None else verdict.margin, low), high)
        colour = BLUE if verdict.ok else VERMILLION
        axes.plot([1, at], [y, y], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot([at], [y], color=colour, marker="o" if verdict.ok else "X", markersize=7)
        axes.annotate(
            verdict.text, (high * 1.25, y), va="center", fontsize=8.5, annotation_clip=False, color=ink
        )
    axes.axvline(1, color=ink, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.1, high * 1.1)
    axes.set_ylim(n - 0.4, -0.6)
    axes.set_yticks(
        range(n),
        [f"{verdict.experiment}: {_cut(verdict.name, 70)}" for verdict in figure.verdicts],
        fontsize=8,
    )
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([0.1, 0.5, 1, 2, 5], ["10×\nbetter", "2×", "the\nbar", "2×", "5×\nworse"])
    axes.minorticks_off()
    for ok, marker, colour in ((True, "o", BLUE), (False, "X", VERMILLION)):
        axes.plot([], [], color=colour, marker=marker, linestyle="none", label="met" if ok else "missed")
    canvas.legend(loc="outside upper left", ncols=2)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"

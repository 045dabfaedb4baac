"""An explanation as one HTML page: no script, nothing fetched, every user string escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import log10

from remora.plan.explain import CLIENT, Block, Edge, Explanation, Phase
from remora.plan.explain_text import amount, duration, error_of, place, plain, times

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = {
    "weight": "#0072b2",
    "kv_cache": "#d55e00",
    "activation": "#009e73",
    "input": "#e69f00",
    "output": "#cc79a7",
    "optimizer_state": "#56b4e9",
}
OTHER = "#888888"
CELL_WIDTH, BLOCK_HEIGHT, GAP, MARGIN = 152, 30, 44, 160

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 2em; max-width: 1200px; }
h1 { font-size: 1.3em; } h2 { font-size: 1.1em; margin-top: 1.6em; }
table { border-collapse: collapse; } th, td { padding: .2em .8em; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; } td { border-bottom: 1px solid #ddd; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.picture { overflow-x: auto; border: 1px solid #ddd; }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -0.1em; }
svg text { font: 11px system-ui, sans-serif; fill: #222; } svg .on { fill: #fff; }
svg .bytes { paint-order: stroke; stroke: #fff; stroke-width: 3px; }
"""


def page(tree: Explanation) -> str:
    """The whole document."""
    title = f"Remora placement: {_text(tree.policy, 60)}"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>",
        _picture(tree),
        _executors(tree),
        _phases(tree.phases),
        _choices(tree),
        _passes(tree),
        _templates(tree),
        "".join(f"<p>{_text(note, 2000)}</p>" for note in tree.notes),
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _text(text: str, width: int = 300) -> str:
    return escape(plain(text, width))


def colour(residency: str) -> str:
    return COLOURS.get(residency, OTHER)


@dataclass(frozen=True)
class _Layout:
    """Where the lanes lie. tops: y of each lane. heights: of each. columns: how many."""

    tops: dict[int, int]
    heights: dict[int, int]
    columns: int

    @property
    def width(self) -> int:
        return MARGIN + self.columns * CELL_WIDTH + 20

    @property
    def height(self) -> int:
        return max((self.tops[lane] + self.heights[lane] for lane in self.tops), default=0) + GAP

    def centre(self, lane: int, column: int) -> tuple[float, float]:
        return self.x(column) + (CELL_WIDTH - 14) / 2, self.tops[lane] + self.heights[lane] / 2

    def x(self, column: int) -> int:
        return MARGIN + column * CELL_WIDTH


def _layout(tree: Explanation) -> _Layout:
    lanes = list(range(len(tree.executors)))
    if any(CLIENT in (edge.source, edge.target) for edge in tree.picture.edges):
        lanes.insert(0, CLIENT)
    stacked: dict[tuple[int, int], int] = {}
    for block in tree.picture.blocks:
        cell = (block.executor, block.column)
        stacked[cell] = stacked.get(cell, 0) + 1
    tops, heights, y = {}, {}, 34
    for lane in lanes:
        most = max((n for (executor, _), n in stacked.items() if executor == lane), default=1)
        tops[lane], heights[lane] = y, most * BLOCK_HEIGHT
        y += heights[lane] + GAP
    return _Layout(tops, heights, len(tree.picture.columns))


def _picture(tree: Explanation) -> str:
    picture = tree.picture
    if not picture.columns:
        return ""
    layout = _layout(tree)
    used = [block.residency for block in picture.blocks] + [edge.residency for edge in picture.edges]
    shown = [
        *(name for name in COLOURS if name in used),
        *sorted({name for name in used if name not in COLOURS}),
    ]
    legend = "".join(
        f'<span class="key" style="background:{colour(name)}"></span>{_text(name, 40)}' for name in shown
    )
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{layout.width}" height="{layout.height}" '
        f'viewBox="0 0 {layout.width} {layout.height}">',
        "<title>What runs and lives on which executor, by layer, and what moves between them</title>",
        *_heads(shown),
        *_lanes(tree, layout),
        *(_column(layout, at, name) for at, name in enumerate(picture.columns)),
        *_blocks(picture.blocks, layout),
        *_edges(picture.edges, layout),
        "</svg>",
    ]
    what = _text(picture.of or "by layers and executors", 60).capitalize()
    return f'<h2>{what}</h2><p>{legend}</p><div class="picture">{"".join(svg)}</div>'


def _heads(residencies: Iterable[str]) -> Iterator[str]:
    """An arrow head for each colour: SVG 1.1 heads do not take that of their line."""
    yield "<defs>"
    for name in dict.fromkeys(colour(residency) for residency in residencies):
        yield (
            f'<marker id="head-{name[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="{name}"/></marker>'
        )
    yield "</defs>"


def _lanes(tree: Explanation, layout: _Layout) -> Iterator[str]:
    for lane, top in layout.tops.items():
        height = layout.heights[lane]
        yield (
            f'<rect x="0" y="{top - 8}" width="{layout.width}" height="{height + 16}" fill="#f4f4f4"/>'
            f'<text x="8" y="{top + 12}" font-weight="bold">'
            f"{'client' if lane == CLIENT else f'executor {lane}'}</text>"
        )
        if lane != CLIENT:
            executor = tree.executors[lane]
            yield (
                f'<text x="8" y="{top + 26}">{_text(executor.address, 24)}'
                f"<title>{_text(executor.address)} {_text(executor.device)}</title></text>"
            )


def _column(layout: _Layout, at: int, name: str) -> str:
    return f'<text x="{layout.x(at)}" y="18">{_text(name, 20)}<title>{_text(name)}</title></text>'


def _blocks(blocks: Iterable[Block], layout: _Layout) -> Iterator[str]:
    filled: dict[tuple[int, int], int] = {}
    for block in blocks:
        cell = (block.executor, block.column)
        at = filled[cell] = filled.get(cell, -1) + 1
        x, y = layout.x(block.column), layout.tops[block.executor] + at * BLOCK_HEIGHT
        about = f"{block.module}: {block.residency}, {amount(block.nbytes)}, {times(block.rows, 'row')}"
        yield (
            f'<g><title>{_text(about)}</title><rect x="{x}" y="{y}" width="{CELL_WIDTH - 14}" '
            f'height="{BLOCK_HEIGHT - 4}" rx="4" fill="{colour(block.residency)}"/>'
            f'<text class="on" x="{x + 6}" y="{y + 17}">{_text(block.residency, 12)} {amount(block.nbytes)}</text></g>'
        )


def _edges(edges: Iterable[Edge], layout: _Layout) -> Iterator[str]:
    drawn: dict[tuple[int, int, int, int], int] = {}
    for edge in edges:
        ends = (edge.source, edge.source_column, edge.target, edge.target_column)
        aside = drawn[ends] = drawn.get(ends, -1) + 1  # parallel ones side by side
        x1, y1 = layout.centre(edge.source, edge.source_column)
        x2, y2 = layout.centre(edge.target, edge.target_column)
        x1, x2 = x1 + aside * 18, x2 + aside * 18
        down = 1 if y2 >= y1 else -1
        y1 += down * layout.heights[edge.source] / 2
        y2 -= down * layout.heights[edge.target] / 2
        bend = (y2 - y1) / 2
        width = 1.0 + max(0.0, log10(max(edge.nbytes, 1)) - 2) * 0.6
        what = f"{amount(edge.nbytes)} {edge.residency}, {times(edge.count, 'transfer')} a step, "
        what += f"{place(edge.source)} to {place(edge.target)}"
        yield (
            f'<g><title>{_text(what)}</title><path d="M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} '
            f'{y2 - bend:.1f} {x2:.1f} {y2:.1f}" fill="none" stroke="{colour(edge.residency)}" '
            f'stroke-width="{width:.1f}" marker-end="url(#head-{colour(edge.residency)[1:]})"/>'
            f'<text class="bytes" x="{(x1 + x2) / 2 + 4:.1f}" y="{(y1 + y2) / 2 + 4 + aside * 12:.1f}">'
            f"{amount(edge.nbytes)}</text></g>"
        )


def _table(title: str, heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """heads: those that start with '#' are over numbers. Cells are escaped here."""
    kinds = [' class="n"' if head.startswith("#") else "" for head in heads]
    top = "".join(
        f"<th{kind}>{_text(head.lstrip('#'))}</th>" for kind, head in zip(kinds, heads, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{_text(cell, 2000)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f"<h2>{_text(title)}</h2><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
        if body
        else ""
    )


def _executors(tree: Explanation) -> str:
    rows = []
    for number, executor in enumerate(tree.executors):
        where = (str(number), executor.address, executor.device)
        for held in executor.held:
            rows.append((*where, held.residency, amount(held.nbytes), ", ".join(held.names)))
        if not executor.held:
            rows.append((*where, "nothing", amount(0), ""))
    return _table("Executors", ("#executor", "address", "device", "what lives there", "#bytes", "of"), rows)


def _phases(phases: Iterable[Phase]) -> str:
    rows = []
    for phase in phases:
        whole = (duration(phase.predicted_s), duration(phase.measured_s))
        steps = times(phase.steps, "step") if phase.steps else ""
        rows.append((phase.name, steps, "", amount(phase.nbytes), "", *whole, ""))
        if phase.computed_s is not None:
            rows.append(("", "of it, executors computed", "", "", "", "", duration(phase.computed_s), ""))
        for moved in phase.transfers:
            seconds = (duration(moved.predicted_s), duration(moved.measured_s))
            error = error_of(moved.predicted_s, moved.measured_s)
            way = f"{place(moved.source)} to {place(moved.target)}"
            rows.append(("", way, moved.residency, amount(moved.nbytes), f"{moved.count:,}", *seconds, error))
        for number, held in enumerate(phase.held):
            there = f"held by {number} after step {phase.held_at:,}"
            rows += [("", there, each.residency, amount(each.nbytes), "", "", "", "") for each in held]
    heads = ("phase", "", "what", "#bytes", "#times", "#predicted", "#measured", "#error")
    return _table("Phases and transfers", heads, rows)


def _choices(tree: Explanation) -> str:
    rows = [
        (
            c.subject,
            c.chosen,
            c.reason,
            duration(c.predicted_s),
            c.alternative or "none",
            duration(c.alternative_s),
        )
        for c in tree.choices
    ]
    heads = ("what", "chosen", "because", "#predicted", "best alternative", "#its prediction")
    return _table("Choices", heads, rows)


def _passes(tree: Explanation) -> str:
    rows = [
        (
            one.subject,
            one.name,
            "taken" if one.taken else "left out",
            one.what,
            one.reason,
            f"{one.predicted_gain:.2f}x",
            "-" if one.measured_gain is None else f"{one.measured_gain:.2f}x",
        )
        for one in tree.passes
    ]
    heads = ("what", "pass", "", "change", "because", "#predicted gain", "#measured gain")
    return _table("Passes", heads, rows)


def _templates(tree: Explanation) -> str:
    rows = [
        (
            t.id[:12],
            t.phase,
            str(t.rows),
            ", ".join(map(str, t.executors)),
            f"{t.runs:,}",
            duration(t.predicted_s),
            duration(t.error_s),
            duration(t.measured_s),
            error_of(t.predicted_s, t.measured_s),
            duration(t.planning_s),
        )
        for t in tree.templates
    ]
    heads = (
        "template",
        "phase",
        "#rows",
        "executors",
        "#runs",
        "#predicted",
        "#±",
        "#measured",
        "#error",
        "#planning",
    )
    return _table("Templates", heads, rows)

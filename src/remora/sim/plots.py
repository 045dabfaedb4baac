"""Pictures of a sweep. Needs matplotlib, which nothing else here does."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from remora.errors import UsageError
from remora.sim.sweep import Point

_WIDTH, _HEIGHT = 7.0, 4.2  # inches


def write_png(points: Sequence[Point], path: Path) -> None:
    """Milliseconds of a program over the sweep's first axis, a line for each combination of the others.

    Raises:
        UsageError: there is no matplotlib.
    """
    path.write_bytes(_picture(points))


def write_html(points: Sequence[Point], path: Path, trace: Path) -> None:
    """One page that needs nothing else: the picture, and a table of all numbers. Raises as `write_png`."""
    picture = base64.b64encode(_picture(points)).decode()
    rows = []
    for point in points:
        content = point.content()
        cells = [point.name, content.get("policy", ""), content.get("error", "")]
        for phase in content.get("phases", [{}]):
            numbers = [
                phase.get("name", ""),
                *(f"{phase.get(key, 0) * 1e3:.4g}" for key in ("mean_s", "sigma_s")),
            ]
            numbers += [f"{phase.get('per_s', 0):.4g}", f"{content.get('utilisation', 0):.1%}"]
            rows.append("".join(f"<td>{html.escape(str(cell))}</td>" for cell in (*cells, *numbers)))
    heads = ["case", "placement", "refused", "phase", "ms", "±", "per&nbsp;s", "busy"]
    page = f"""<!doctype html><meta charset="utf-8"><title>remora sim</title>
<style>body{{font:14px system-ui;margin:2em;max-width:70em}}td,th{{padding:.2em .8em;text-align:left}}
tr:nth-child(even){{background:#f3f3f3}}</style>
<h1>{html.escape(trace.name)}, simulated</h1><img alt="milliseconds of a program" src="data:image/png;base64,{picture}">
<table><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>{"".join(f"<tr>{row}</tr>" for row in rows)}</table>
"""
    path.write_text(page)


def lines(points: Sequence[Point]) -> dict[str, list[tuple[str, float, float]]]:
    """By line: (value on the first axis, ms of a program, its error), of the phase that most programs are of."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for point in points:
        if point.found is None or not point.found.phases:
            continue
        phase = max(point.found.phases, key=lambda one: one.programs)
        name = ", ".join(f"{axis} {value}" for axis, value in point.where[1:]) or phase.name
        at = point.where[0][1] if point.where else "as asked"
        found.setdefault(name, []).append((at, phase.mean_s * 1e3, phase.sigma_s * 1e3))
    return found


def _picture(points: Sequence[Point]) -> bytes:
    try:
        import_module("matplotlib").use("Agg")
        pyplot: Any = import_module("matplotlib.pyplot")
    except ImportError:
        raise UsageError("pictures need matplotlib: pip install matplotlib") from None
    figure, axes = pyplot.subplots(figsize=(_WIDTH, _HEIGHT), constrained_layout=True)
    values = list(dict.fromkeys(point.where[0][1] for point in points if point.where)) or ["as asked"]
    for name, line in lines(points).items():
        places = [values.index(at) for at, _, _ in line]
        axes.errorbar(
            places,
            [ms for _, ms, _ in line],
            [error for _, _, error in line],
            marker="o",
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(values)), values)
    axes.set_xlabel(
        points[0].where[0][0] + (" (ms)" if points[0].where[0][0] == "rtt" else "") if points[0].where else ""
    )
    axes.set_ylabel("ms of a program, from sync to sync")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, metadata={"Software": None})
    pyplot.close(figure)
    return out.getvalue()

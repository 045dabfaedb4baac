"""`remora bench report FILES`: what records of measurements say, as a page and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from remora.cli.failure import fail, failures_in_one_line


def write_report(files: Sequence[Path], html: Path | None, png: Path | None) -> None:
    """Writes the page, and a PNG of each picture that could be drawn into the folder `png`.

    Raises:
        typer.Exit: nothing to read or write, or a file that holds no records; one line on stderr says which.
    """
    from remora.bench.experiments import EXPERIMENTS
    from remora.bench.records import Unreadable
    from remora.bench.report import draw
    from remora.bench.report.evidence import read
    from remora.bench.report.figures import Missing
    from remora.bench.report.page import FIGURES, page

    if not files:
        raise fail(
            "bench", "report needs files with records: remora bench report results/*.jsonl --html FILE", 2
        )
    if html is None and png is None:
        raise fail("bench", "report needs --html FILE, --png FOLDER or both", 2)
    try:
        evidence = read(files)
    except (Unreadable, OSError) as error:
        raise fail("bench", str(error), 2) from None
    with failures_in_one_line("bench"):
        if html is not None:
            html.write_text(page(evidence, (*EXPERIMENTS, "peers"), draw.svg), encoding="utf-8")
            typer.echo(html)
        if png is not None:
            png.mkdir(parents=True, exist_ok=True)
            for figure in (make(evidence) for make in FIGURES):
                if isinstance(figure, Missing):
                    typer.echo(f"{figure.name}: not measured", err=True)
                    continue
                path = png / f"{figure.head.name}.png"
                path.write_bytes(draw.png(figure))
                typer.echo(path)

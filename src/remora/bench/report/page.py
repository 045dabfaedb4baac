"""The report as one HTML page: no script, nothing fetched, every string of the records escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from remora.bench.records import Run
from remora.bench.report import growth, series
from remora.bench.report.evidence import Evidence
from remora.bench.report.figures import Figure, Missing
from remora.bench.report.tables import FEW, Section, Table, missing, reached, sections

FIGURES: tuple[Callable[[Evidence], Figure | Missing], ...] = (
    series.latency,
    series.gains,
    series.wire_bytes,
    series.round_trips,
    growth.predictions,
    growth.growth,
    growth.peers,
    growth.verdicts,
)

STYLE = """
:root { color-scheme: light dark; --ink: #222; --page: #fff; --grid: #ddd; --soft: #666; --missed: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --page: #16181c; --grid: #3a3e45; --soft: #9aa0a8; --missed: #ff9a4d; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
       margin: 2em auto; max-width: 980px; padding: 0 1.2em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2.2em; } h3 { font-size: 1em; }
figure { margin: 1em 0; } figure svg { height: auto; max-width: 100%; }
figcaption, .soft { color: var(--soft); font-size: .9em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .87em; }
th, td { padding: .15em 1.2em .15em 0; text-align: left; vertical-align: top; min-width: 4em; }
th { border-bottom: 2px solid var(--soft); } td { border-bottom: 1px solid var(--grid); }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.missed td { color: var(--missed); font-weight: 600; }
code { font: .92em ui-monospace, monospace; } a { color: inherit; } summary { cursor: pointer; }
details { border-top: 1px solid var(--grid); padding: .4em 0; }
"""
NUMBER, MISSED = ' class="n"', ' class="missed"'
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(evidence: Evidence, expected: Sequence[str], drawn: Callable[[Figure], str]) -> str:
    """The whole document. expected: experiments that a complete report has. drawn: a figure as an <svg>."""
    return "\n".join(_parts(evidence, expected, drawn)) + "\n"


def _parts(evidence: Evidence, expected: Sequence[str], drawn: Callable[[Figure], str]) -> Iterator[str]:
    yield '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    yield f"<title>Remora: measurements</title><style>{STYLE}</style></head><body>"
    yield "<h1>Remora: measurements</h1>"
    yield from _summary(evidence, expected)
    for make in FIGURES:
        figure = make(evidence)
        if isinstance(figure, Missing):
            yield f"<h2>{escape(figure.title)}</h2><p><b>Not measured.</b> It needs {_words(figure.needs)}.</p>"
            continue
        yield f'<h2 id="{figure.head.name}">{escape(figure.head.title)}</h2><figure>'
        yield drawn(figure)
        yield f"<figcaption>{escape(figure.head.caption)} {_made_by(figure.head.runs, evidence)}</figcaption>"
        yield "</figure>"
        if make is series.gains and (table := reached(evidence)) is not None:
            yield _table(table)
    yield "<h2>Every number, by run</h2>"
    for section in sections(evidence):
        yield from _section(section)
    yield "</body></html>"


def _summary(evidence: Evidence, expected: Sequence[str]) -> Iterator[str]:
    bars = evidence.standing_bars()
    met = sum(bar.ok for bar in bars)
    yield (
        f"<p>{len(evidence.runs)} runs, {len(evidence.samples)} samples, {len(evidence.rows)} measures; "
        f"<b>{met} of {len(bars)} bars met</b>.</p>"
    )
    if absent := missing(evidence, expected):
        yield f"<p><b>No records of:</b> {escape(', '.join(absent))}. What needs them is not shown.</p>"
    if wrong := [sample for sample in evidence.samples if sample.identical is False]:
        yield f'<p class="missed"><b>Outputs differ from local in {len(wrong)} samples</b>; none of them is drawn.</p>'
    yield (
        '<p class="soft">A number is a median, beside it the 95 % interval of the median. † or “one trial”: '
        f"one trial, so no interval. Below {FEW} trials an interval holds the median less often than that, so the "
        "number of trials stands beside it. Simulated numbers are hatched, hollow or unframed, and say so in the "
        "tables. Where several runs answer the same question, pictures show the newest full run.</p>"
    )


def _words(text: str) -> str:
    """Escaped, with `code`."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if at % 2 else piece for at, piece in enumerate(pieces))


def _made_by(runs: Sequence[str], evidence: Evidence) -> str:
    links = []
    for name in runs:
        run = evidence.runs[name]
        when = ", ".join(
            part for part in (run.started[:10], run.commit, "quick" if run.quick else "") if part
        )
        links.append(
            f'<a href="#run-{escape(name)}"><code>{escape(command(run))}</code></a> ({escape(when)})'
        )
    return f"Made by {', '.join(links)}."


def command(run: Run) -> str:
    return run.command or f"{run.experiment} (command not recorded)"


def _section(section: Section) -> Iterator[str]:
    run = section.run
    versions = ", ".join(f"{name} {text}" for name, text in run.versions.items())
    about = [
        run.started or "date not recorded",
        f"commit {run.commit or 'not recorded'}",
        versions,
        f"seed {run.seed}",
        *(["quick: fewer trials"] if run.quick else []),
    ]
    yield f'<details id="run-{escape(run.run)}"><summary><code>{escape(command(run))}</code>'
    yield f'<span class="soft"> {escape(run.started)}</span></summary>'
    yield f'<p class="soft">{escape("; ".join(about))}</p>'
    for table in section.tables:
        yield f"<h3>{escape(table.title)}</h3>"
        yield _table(table)
    if not section.tables:
        yield "<p>It left no numbers.</p>"
    yield "</details>"


def _table(table: Table) -> str:
    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{NUMBER if at in table.numeric else ''}>{escape(text)}</{tag}>"
            for at, text in enumerate(texts)
        )

    rows = "\n".join(
        f"<tr{MISSED if at in table.missed else ''}>{cells('td', row)}</tr>"
        for at, row in enumerate(table.rows)
    )
    return f'<div class="wide"><table><tr>{cells("th", table.heads)}</tr>\n{rows}</table></div>'

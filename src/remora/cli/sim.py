"""`remora sim`: what a recorded program would take on other links, devices and executors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remora.cli.failure import fail, failures_in_one_line

if TYPE_CHECKING:
    from remora.sim.sweep import Point


def sim(
    trace: Annotated[Path, typer.Argument(help="What `remora run --record` wrote")],
    link: Annotated[
        str, typer.Option(help="Rate and one-way delay, such as 10gbit,5ms; `recorded`: as it was then")
    ] = "recorded",
    device: Annotated[
        str, typer.Option(help="Executors' devices, such as h100,a10, files of calibrations, or `recorded`")
    ] = "recorded",
    executors: Annotated[
        int, typer.Option(min=0, help="How many there are; 0: as recorded, or as named")
    ] = 0,
    grant: Annotated[int, typer.Option(min=0, help="How many of them one session gets; 0: all, up to 8")] = 0,
    placement: Annotated[
        str,
        typer.Option(help="Policies to compare, with commas; none: semantic, or local where there is one"),
    ] = "",
    sessions: Annotated[int, typer.Option(min=1, help="How many run the program")] = 1,
    every: Annotated[
        float, typer.Option(min=0, help="Milliseconds from one session to the next, on average")
    ] = 0,
    run_ahead: Annotated[
        bool | None, typer.Option("--run-ahead/--no-run-ahead", help="Instead of what was recorded")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="What to vary, such as link=1gbit,10gbit or rtt=0,5,50 (ms); also device, placement, "
            "executors, sessions; with several, all combinations"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, and of who gets which executors")] = 0,
    replicas: Annotated[
        int, typer.Option(min=0, help="Simulations with other errors of the calibration, for the error bars")
    ] = 8,
    html: Annotated[Path | None, typer.Option(help="A page with tables and plots")] = None,
    png: Annotated[Path | None, typer.Option(help="A plot of the sweep")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on stdout")] = False,
) -> None:
    """Simulate a recorded program, event by event: a real session's planner and run-ahead, on other machines."""
    with failures_in_one_line("sim"):
        from remora.sim.scenario import Scenario
        from remora.sim.simulate import Load
        from remora.sim.sweep import parse_sweep, scenarios, swept

        first = Scenario(
            device, link, executors, "", Load(sessions, every / 1e3), grant, seed, run_ahead, replicas
        )
        axes = [parse_sweep(text) for text in sweep or ()]
        if placement:
            axes.append(("placement", [word.strip() for word in placement.split(",") if word.strip()]))
        points = swept(trace, scenarios(first, axes))
        if html is not None or png is not None:
            from remora.sim.plots import write_html, write_png

            if png is not None:
                write_png(points, png)
            if html is not None:
                write_html(points, html, trace)
    if not as_json:
        _print(points)
    typer.echo(json.dumps({"trace": trace.name, "points": [point.content() for point in points]}))
    if not any(point.found for point in points):
        raise fail("sim", points[0].error, 1)


def _print(points: Sequence[Point]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 150
    table = Table(
        "case",
        "placement",
        "phase",
        "programs",
        "ms each",
        "per s",
        "busy",
        "queued ms",
        "MB in, out, between",
    )
    for point in points:
        found = point.found
        if found is None:
            table.add_row(point.name, "", f"refused: {point.error}")
            continue
        content = point.content()
        for at, phase in enumerate(found.phases):
            each = f"{phase.mean_s * 1e3:.4g} ± {phase.sigma_s * 1e3:.2g}"
            first = [point.name, found.policy] if not at else ["", ""]
            rest = [f"{content['utilisation']:.0%}", f"{content['queued_s'] * 1e3:.3g}", _megabytes(content)]
            table.add_row(
                *first,
                phase.name,
                str(phase.programs),
                each,
                f"{phase.per_s:.4g}",
                *(rest if not at else [""] * 3),
            )
        table.add_row(
            "", "", "all", "", f"{found.outcome.seconds:.4g} ± {found.sigma_s:.2g} s", "", "", "", ""
        )
    console.print(table)


def _megabytes(content: dict[str, Any]) -> str:
    return ", ".join(
        f"{content[name] / 1e6:.4g}" for name in ("received_nbytes", "sent_nbytes", "pushed_nbytes")
    )

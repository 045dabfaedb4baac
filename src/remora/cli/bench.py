"""`remora bench`: runs an experiment, shows what it measured, and fails if a bar is missed."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remora.cli.bench_report import write_report
from remora.cli.failure import fail, failures_in_one_line

if TYPE_CHECKING:
    from remora.bench.harness import Report

LONGEST_RTT_MS = 1000.0
LONGEST_GBIT = 1000.0


def bench(
    experiment: Annotated[
        str,
        typer.Argument(
            help="Which one: seed, modes, scale, decode, train, zoo, compat, semantics, placement, calibration, sim, "
            "prefill, vision, multimodal; all; or report, with files."
        ),
    ] = "decode",
    files: Annotated[
        list[Path] | None, typer.Argument(help="Of report: records, as experiments leave them.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer trials and tokens: a minute or so.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Only JSON on stdout.")] = False,
    url: Annotated[
        str | None, typer.Option(help="An executor that runs with --threads 1; none: one is started.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the trials.")] = 0,
    only: Annotated[
        str | None,
        typer.Option(help="One architecture, for zoo; one op, for compat; one program, for semantics."),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(help="The file whose table compat makes anew; the folder of semantics' golden graphs."),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="One of the suite, for placement; a model, for vision and multimodal; repeatable. None: all."
        ),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="One policy, for placement; repeatable. None: all.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Of report: the page to write.")] = None,
    png: Annotated[Path | None, typer.Option(help="Of report: the folder for its pictures.")] = None,
    rtt: Annotated[
        str | None,
        typer.Option(
            help="Round trips in ms, such as 0,10,50: decode measures run-ahead behind each, sim its simulation."
        ),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Gbit/s of links, such as 0.56,10, for seed. None: all.")
    ] = None,
    executors: Annotated[
        str | None, typer.Option(help="Addresses of two executors on hosts of their own, for seed.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A file that the raw results are added to, as JSON lines.")
    ] = None,
) -> None:
    """Measure remote against local; the last line of output is JSON, exit code 1 means a bar was missed."""
    if experiment == "report":
        write_report(files or (), html, png)
        return
    if files or html or png:
        raise fail("bench", "files, --html and --png are of report", 2)
    from remora.bench import experiments, records
    from remora.bench.harness import Options

    if experiment not in (*experiments.EXPERIMENTS, "all"):
        known = ", ".join(experiments.EXPERIMENTS)
        raise fail("bench", f"there is no experiment {experiment!r}; there is: {known}, all", 2)
    for option, given, of in (
        ("--rtt", rtt, ("decode", "sim")),
        ("--rate", rate, ("seed",)),
        ("--executors", executors, ("seed",)),
    ):
        if given is not None and experiment not in of:
            raise fail("bench", f"{option} is of {' and '.join(of)}; {experiment} has none to choose", 2)
    try:
        rtts = round_trips(rtt) if rtt is not None else ()
        rates = listed("--rate", rate, "Gbit/s", LONGEST_GBIT) if rate is not None else ()
    except ValueError as error:
        raise fail("bench", str(error), 2) from None
    hosts = tuple(url.strip() for url in (executors or "").split(",") if url.strip())
    asked = Options(
        quick, url, seed, only, write, tuple(workload or ()), tuple(policy or ()), rtts, hosts, rates
    )
    if experiment == "all":
        raise typer.Exit(experiments.run_all(asked, out))
    with failures_in_one_line("bench"):
        report = experiments.run(experiment, asked)
        if out is not None:
            records.write(out, report.as_records(shlex.join(["remora", *sys.argv[1:]]), asked))
    if not as_json:
        _print_tables(report)
    typer.echo(json.dumps(report.content()))
    raise typer.Exit(0 if report.ok else 1)


def round_trips(text: str) -> tuple[float, ...]:
    """Milliseconds of a list with commas, ascending, each once.

    Raises:
        ValueError: it is no such list; quotes it.
    """
    return listed("--rtt", text, "milliseconds", LONGEST_RTT_MS)


def listed(option: str, text: str, unit: str, most: float) -> tuple[float, ...]:
    """Numbers of a list with commas, ascending, each once.

    Raises:
        ValueError: it is no such list; quotes it.
    """
    try:
        found = {float(part) for part in text.split(",")}
    except ValueError:
        found = set()
    if not found or not all(0 <= number <= most for number in found):
        raise ValueError(f"{option} {text!r} is no list of {unit} from 0 to {most:g}, such as 0,10,50")
    return tuple(sorted(found))


def _print_tables(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 140
    rows = Table("measure", "arm", "median", "low", "high", "unit", "trials", title=report.experiment)
    for row in report.rows:
        numbers = [f"{number:.4g}" for number in (row.median, row.low, row.high)]
        rows.add_row(row.measure, row.arm, *numbers, row.unit, str(row.trials))
    bars = Table("bar", "value", "", "must be", "")
    for bar in report.bars:
        bars.add_row(bar.name, f"{bar.value:.4g}", bar.op, f"{bar.bar:.4g}", "ok" if bar.ok else "MISSED")
    console.print(rows)
    console.print(bars)

"""An explanation as text: aligned, 100 columns wide, free of control characters."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from remora.plan.explain import CLIENT, Choice, Executor, Explanation, Phase, Template

COLUMNS = 100
STAYS = ("weight", "kv_cache", "optimizer_state")  # what a step leaves to the next
# Up to the first whole number between dots, and what follows it.
_NUMBER = re.compile(r"(?as)(.*?)(?:(?<!\w)([1-9]\d{0,8}|0)(?!\w)(.*))?\Z")
_TEMPLATES_SHOWN = 20
_LINES = 3  # of names
_MORE = ", and {:,} more"


def print_explanation(tree: Explanation) -> str:
    """The whole tree, ending in a newline."""
    lines = [_headline(tree), "", "Executors"]
    for number, executor in enumerate(tree.executors):
        lines += _executor(number, executor)
    if tree.phases:
        lines += ["", _columns("Phases", "predicted", "measured", "error")]
        for phase in tree.phases:
            lines += _phase(phase)
    if tree.picture.of:
        lines += ["", *_step(tree)]
    if tree.choices:
        lines += ["", "Choices"]
        for choice in tree.choices:
            lines += _choice(choice)
    if tree.passes:
        lines += ["", "Passes"]
        for one in tree.passes:
            lines += _wrapped("  ", f"{one.subject}: {one}")
    if tree.templates:
        lines += ["", _columns("Templates", "predicted", "measured", "error")]
        lines += _templates(tree.templates)
    if tree.notes:
        lines += ["", "Notes"]
        for note in tree.notes:
            lines += _wrapped("  ", note)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def amount(nbytes: int) -> str:
    """'3.0 KiB', '497.8 MiB', '12 B'."""
    if nbytes < 1024:
        return f"{nbytes} B"
    value, units = float(nbytes), ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    while value >= 1023.95 and power + 1 < len(units):  # what would print as 1024.0 is 1.0 of the next
        value, power = value / 1024, power + 1
    return f"{value:.1f} {units[power]}"


def duration(seconds: float | None) -> str:
    """'12.3 ms', '45.0 us', '3.21 s'; '-' for None."""
    if seconds is None:
        return "-"
    if seconds == 0:
        return "0 s"
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 0.9995:
            return (
                f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds * scale:.0f} {unit}"
            )
    return f"{seconds * 1e9:.3g} ns"


def error_of(predicted_s: float | None, measured_s: float | None) -> str:
    """How far the prediction was off, '+3.2 %' or '12x'; '-' where one is missing."""
    if predicted_s is None or not measured_s:
        return "-"
    ratio = predicted_s / measured_s
    return f"{(ratio - 1) * 100:+.1f} %" if ratio < 10 else f"{ratio:.3g}x"


def plain(text: str, width: int = COLUMNS) -> str:
    """The text without anything that a terminal would act on, its middle left out where it is too long."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    if len(shown) <= width:
        return shown
    tail = (width - 1) // 2
    return shown[: width - 1 - tail] + "…" + (shown[-tail:] if tail else "")


def place(executor: int) -> str:
    return "client" if executor == CLIENT else str(executor)


def times(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _headline(tree: Explanation) -> str:
    text = f"Policy {plain(tree.policy, 30)}, {times(len(tree.executors), 'executor')}"
    if tree.templates:
        ids = len({template.id for template in tree.templates})
        text += f", {times(ids, 'template')} in {times(len(tree.templates), 'plan')}"
        planning = [t.planning_s for t in tree.templates if t.planning_s is not None]
        if planning:
            text += f" made in {duration(sum(planning))}"
    return text


def _columns(left: str, *right: str) -> str:
    """`left`, then short cells at the right edge."""
    cells = "".join(f"{cell:>11}" for cell in right)
    return f"{left:<{COLUMNS - len(cells)}}{cells}"


def _timed(left: str, predicted_s: float | None, measured_s: float | None) -> str:
    return _columns(
        plain(left, COLUMNS - 34),
        duration(predicted_s),
        duration(measured_s),
        error_of(predicted_s, measured_s),
    )


def _executor(number: int, executor: Executor) -> Iterator[str]:
    holds = amount(executor.nbytes)
    if executor.memory_nbytes is not None:
        holds += f" of {amount(executor.memory_nbytes)}"
    yield f"{number:>3}  {plain(executor.address, 48):<48}  {plain(executor.device, 18):<18}  {holds}"
    for held in executor.held:
        count = times(held.count, "value")
        head = f"       {plain(held.residency, 16):<16} {amount(held.nbytes):>10}  {count:<11}  "
        yield from _named(head, held.names)
    if not executor.held:
        yield "       nothing lives here"


def _named(head: str, names: Sequence[str]) -> Iterator[str]:
    """`head` and the names, those of repeated blocks folded; on as many lines as they may take, then how many more."""
    room = COLUMNS - len(head)
    folded = [plain(name, max(room - len(_MORE), 1)) for name in fold(names)]
    at = 0
    for line in range(_LINES):
        shown = at + 1
        while shown < len(folded) and len(_listed(folded, at, shown + 1, line == _LINES - 1)) <= room:
            shown += 1
        yield (head if not line else " " * len(head)) + _listed(folded, at, shown, line == _LINES - 1)
        at = shown
        if at >= len(folded):
            return


def _listed(names: Sequence[str], start: int, end: int, is_last: bool) -> str:
    """Some of the names, with what follows them."""
    more = len(names) - end
    after = "" if more <= 0 else _MORE.format(more) if is_last else ","
    return ", ".join(names[start:end]) + after


def fold(names: Sequence[str]) -> list[str]:
    """Names that differ in one number alone become one: h.0, h.1, h.2 is h.{0..2}, and h.0, h.2 is h.{0,2}."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for name in names:
        name = name.partition(" (")[0]  # the class behind a path
        if not name:
            continue
        head, number, tail = _NUMBER.match(name).groups()  # type: ignore[union-attr]  # it matches any text
        groups.setdefault((head, tail) if number else (name,), []).append(int(number or 0))
    return [key[0] + _range(numbers) + key[1] if len(key) == 2 else key[0] for key, numbers in groups.items()]


def _range(numbers: Sequence[int]) -> str:
    ordered = sorted(set(numbers))
    if len(ordered) == 1:
        return str(ordered[0])
    whole = ordered[-1] - ordered[0] + 1 == len(ordered)
    return "{" + (f"{ordered[0]}..{ordered[-1]}" if whole else ",".join(map(str, ordered))) + "}"


def _phase(phase: Phase) -> Iterator[str]:
    moved = f"{amount(phase.nbytes)} moved" if phase.transfers else "nothing moved"
    steps = f"{times(phase.steps, 'step')}, " if phase.steps else ""
    yield _columns(
        f"  {plain(phase.name, 24)}: {steps}{moved}",
        duration(phase.predicted_s),
        duration(phase.measured_s),
        "",
    )
    if phase.computed_s is not None and phase.measured_s:
        each_s = phase.measured_s / max(phase.steps, 1)
        computed_s = phase.computed_s / max(phase.steps, 1)
        yield f"    a step took {duration(each_s)}; executors computed for {duration(computed_s)} of it"
    for number, held in enumerate(phase.held):
        stays = [
            f"{plain(each.residency, 16)} {amount(each.nbytes)}" for each in held if each.residency in STAYS
        ]
        if stays:
            yield from _wrapped(f"    after step {phase.held_at:,} executor {number} held ", ", ".join(stays))
    for transfer in phase.transfers:
        each = transfer.nbytes // max(transfer.count, 1)
        yield _timed(
            f"    {place(transfer.source):>6} -> {place(transfer.target):<6} {plain(transfer.residency, 16):<16}"
            f" {amount(transfer.nbytes):>10} = {transfer.count:,} x {amount(each)}",
            transfer.predicted_s,
            transfer.measured_s,
        )


def _step(tree: Explanation) -> Iterator[str]:
    """The picture in words: how many rows of what run where, and what moves."""
    picture = tree.picture
    yield plain(picture.of, COLUMNS).capitalize()
    for executor in range(len(tree.executors)):
        blocks = [block for block in picture.blocks if block.executor == executor and block.rows]
        names = [picture.columns[column] for column in sorted({block.column for block in blocks})]
        if names:
            rows = times(sum(block.rows for block in blocks), "row")
            yield from _named(f"  {executor:>6} runs {rows:>11}: ", names)
    moved: dict[tuple[int, int, str], list[int]] = {}
    for edge in picture.edges:
        tally = moved.setdefault((edge.source, edge.target, edge.residency), [0, 0])
        tally[0], tally[1] = tally[0] + edge.nbytes, tally[1] + edge.count
    for (source, target, residency), (nbytes, count) in moved.items():
        yield (
            f"  {place(source):>6} -> {place(target):<6} {plain(residency, 16):<16} {amount(nbytes):>10}, "
            f"{times(count, 'value')}"
        )


def _choice(choice: Choice) -> Iterator[str]:
    cost = f", predicted {duration(choice.predicted_s)}" if choice.predicted_s is not None else ""
    yield from _wrapped("  ", f"{choice.subject}: {choice.chosen}{cost}")
    yield from _wrapped("      because ", choice.reason)
    if not choice.alternative:
        yield "      no alternative"
        return
    against = ""
    if choice.alternative_s is not None:
        against = f", predicted {duration(choice.alternative_s)}"
        if choice.predicted_s:
            against += f" ({choice.alternative_s / choice.predicted_s:.3g}x)"
    yield from _wrapped("      instead of ", f"{choice.alternative}{against}")


def _wrapped(head: str, text: str) -> list[str]:
    room = COLUMNS - len(head)
    lines = textwrap.wrap(plain(text, 2000), room) or [""]
    return [(head if not at else " " * len(head)) + line for at, line in enumerate(lines)]


def _templates(templates: Sequence[Template]) -> Iterator[str]:
    """The ones that took the longest, first."""
    by_time = sorted(templates, key=lambda t: -(t.measured_s or t.predicted_s or 0.0) * t.runs)
    for template in by_time[:_TEMPLATES_SHOWN]:
        where = ",".join(map(str, template.executors)) or "-"
        yield _timed(
            f"  {plain(template.id, 12):<12} {plain(template.phase, 10):<10} {times(template.rows, 'row'):>11}"
            f" on {plain(where, 9):<9} {times(template.runs, 'run'):>12}",
            template.predicted_s,
            template.measured_s,
        )
    hidden = by_time[_TEMPLATES_SHOWN:]
    if hidden:
        yield f"  and {times(len(hidden), 'more template')}, {times(sum(t.runs for t in hidden), 'run')}"

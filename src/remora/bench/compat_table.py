"""The ops that fail, by name with the reason, as the table that docs/compatibility.md holds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

BEGIN = "<!-- made by `remora bench compat --write`: begin -->"
END = "<!-- made by `remora bench compat --write`: end -->"


def kinds(results: list[Any]) -> dict[str, int]:
    """How many ops fail, by the kind of their first failure."""
    return dict(Counter(result.failures[0]["kind"] for result in results if result.failures))


_VERSIONS = re.compile(r" \(this is torch .*\)$")  # both are those of the bench


def text(results: list[Any]) -> str:
    """A sentence with the count, and a table row an op that fails."""
    failed = [result for result in results if result.failures]
    n = len(results)
    share = f"{(n - len(failed)) / max(n, 1):.1%}"
    lines = [f"{n - len(failed)} of {n} ops ({share}) are equal to the CPU in every call that was compared."]
    if failed:
        lines += ["", "| op | what | cases | reason |", "|---|---|---|---|"]
        for result in sorted(failed, key=lambda result: result.name):
            first = result.failures[0]
            said = _VERSIONS.sub("", first["reason"])
            reason = f"{first['case'].strip()}: {said}".replace("|", "\\|").replace("\n", " ")
            cases = f"{len(result.failures)} of {result.compared}"
            lines.append(f"| `{result.name}` | {first['kind']} | {cases} | {reason} |")
    return "\n".join(lines)


def write(path: Path, results: list[Any]) -> None:
    """Replaces what stands between the markers in a file.

    Raises:
        ValueError: it has no markers.
    """
    content = path.read_text()
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{text(results)}\n{END}{after}")

"""Passes: from a placed graph to another that computes the same faster. In this order; each may be switched off."""

from __future__ import annotations

from remora.errors import UsageError
from remora.plan.passes.batch_split import BatchSplit
from remora.plan.passes.branches import Branches
from remora.plan.passes.frame import Pass, PassChoice, improved, lay
from remora.plan.passes.pipeline import Pipeline

PASSES: tuple[Pass, ...] = (BatchSplit(), Branches(), Pipeline())

__all__ = ["PASSES", "Pass", "PassChoice", "improved", "lay", "passes_named"]


def passes_named(names: str) -> tuple[Pass, ...]:
    """Passes by their names with commas between them, in their own order: `all`, `none`, or those alone; `-name`: all
    but these.

    Raises:
        UsageError: there is none of that name; lists them.
    """
    known = [one.name for one in PASSES]
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if asked in (["all"], ["none"]):
        return PASSES if asked == ["all"] else ()
    for name in asked:
        if name.removeprefix("-") not in known:
            raise UsageError(
                f"no pass {name.removeprefix('-')!r}; there are {', '.join(known)}, all and none"
            )
    off = {name[1:] for name in asked if name.startswith("-")}
    on = {name for name in asked if not name.startswith("-")} or set(known)
    return tuple(one for one in PASSES if one.name in on - off)

"""Hand-written shape rules of the hot ops, without torch: the metadata of a result in a few microseconds.

A rule is called exactly as its op is, with a `Meta` in the place of each tensor, and returns the `Meta` of
the result, a tuple of them, or None: no rule for this case, ask the meta kernel. A rule never raises for a
call that fits the op's schema; a call that the op would refuse gives None, so that the meta kernel says why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from remora.ops import (
    shapes_contract,
    shapes_convolve,
    shapes_create,
    shapes_pointwise,
    shapes_reduce,
    shapes_views,
)
from remora.ops.layout import Constants, Meta

Rule = Callable[..., Meta | tuple[Meta, ...] | None]

__all__ = ["DECLARED", "SHAPE_RULES", "Constants", "Meta", "Rule", "rules"]

# Ops whose strides are Remora's own choice, which the executor enforces: attention kernels disagree.
DECLARED = frozenset({"aten.scaled_dot_product_attention.default"})

SHAPE_RULES: dict[str, Callable[..., Meta | tuple[Meta, ...] | None]] = {
    **shapes_pointwise.RULES,
    **shapes_views.RULES,
    **shapes_create.RULES,
    **shapes_reduce.RULES,
    **shapes_contract.RULES,
    **shapes_convolve.RULES,
}
"""Rules by op name; each takes the torch constants first. `rules` binds them."""


def rules(constants: Constants) -> dict[str, Rule]:
    """The rules by op name, ready to be called as the op is."""
    return {name: partial(rule, constants) for name, rule in SHAPE_RULES.items()}

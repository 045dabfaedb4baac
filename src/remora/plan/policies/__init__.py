"""Policies: where the rows of a graph run. Peers behind one interface; each is a pure function of what it is given."""

from __future__ import annotations

from remora.errors import UsageError
from remora.plan.policies.explicit import Explicit
from remora.plan.policies.policy import Policy
from remora.plan.policies.semantic import Semantic
from remora.plan.policies.split import Split
from remora.plan.policies.whole import Blind, DataAware, LeastLoaded, Local, Random

POLICIES: dict[str, type[Policy]] = {
    "semantic": Semantic,
    "local": Local,
    "blind": Blind,
    "random": Random,
    "least_loaded": LeastLoaded,
    "data_aware": DataAware,
    "split": Split,
    "explicit": Explicit,
}


def policy_named(name: str) -> Policy:
    """A policy in its starting state.

    Raises:
        UsageError: there is none of that name; lists them.
    """
    if name not in POLICIES:
        raise UsageError(f"no placement {name!r}; there are {', '.join(POLICIES)}")
    return POLICIES[name]()

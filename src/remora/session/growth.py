"""Plans whose inputs have grown: kept for the next size, unless memory or the policy's choice could then be another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from remora.plan.devices import Pool
from remora.plan.duration import Duration
from remora.plan.policies.policy import ROOM
from remora.plan.policies.semantic import CLEARLY_FASTER
from remora.session.plans import Plan, Ran


def grown(
    plan: Plan, nbytes: int, pool: Pool, held_nbytes: Sequence[int], limits_nbytes: Sequence[int]
) -> Plan | None:
    """The plan of the size below for inputs of `nbytes` that lie in the same way; None: it has to be made anew.

    Bytes are taken to grow as the inputs do, and kernels' seconds with them; calls cost what they cost.
    """
    factor = nbytes / max(1, plan.nbytes)
    if not _fits(plan, factor, held_nbytes, limits_nbytes) or not _is_best(plan, factor, pool):
        return None
    predicted = tuple(
        _longer(took, _kernels_s(plan, at, pool) * (factor - 1)) for at, took in enumerate(plan.predicted)
    )
    more_s = sum(
        after.seconds - before.seconds for after, before in zip(predicted, plan.predicted, strict=True)
    )
    return replace(
        plan,
        bucket=nbytes.bit_length(),
        nbytes=nbytes,
        gets_nbytes=_scaled(plan.gets_nbytes, factor),
        makes_nbytes=_scaled(plan.makes_nbytes, factor),
        predicted=predicted,
        whole=_longer(plan.whole, more_s),
        ran=Ran(0.0),
    )


def _fits(plan: Plan, factor: float, held_nbytes: Sequence[int], limits_nbytes: Sequence[int]) -> bool:
    """Whether executors have room for all of it, as a policy would want it."""
    gets = dict(_scaled(plan.gets_nbytes, factor))
    for executor, makes in _scaled(plan.makes_nbytes, factor):
        missing = gets.get(executor, 0)
        held, limit = held_nbytes[executor] + missing, limits_nbytes[executor]
        if held + makes > limit or (missing and held + makes > ROOM * limit):
            return False
    return True


def _is_best(plan: Plan, factor: float, pool: Pool) -> bool:
    """Whether no size could have made the policy choose otherwise.

    What runs on one executor takes longer elsewhere, too, if no device there is clearly faster. Otherwise the seconds
    that come on top here must not be more than the alternative took longer.
    """
    alternative = plan.wish.alternative_took
    if alternative is None:
        return True
    executors = {part.executor for part in plan.parts}
    if len(executors) == 1 and pool.devices:
        rate = pool.devices[min(executors)].memory_rate
        if all(device.memory_rate <= CLEARLY_FASTER * rate for device in pool.devices):
            return True
    more_s = sum(_kernels_s(plan, at, pool) for at in range(len(plan.parts))) * (factor - 1)
    if len(executors) > 1:
        more_s = plan.whole.seconds * (factor - 1)
    return more_s <= alternative.seconds - plan.whole.seconds


def _kernels_s(plan: Plan, part: int, pool: Pool) -> float:
    """Of a part's predicted seconds, those that no call of a row explains."""
    of = plan.parts[part]
    device = pool.devices[of.executor]
    return max(0.0, plan.predicted[part].seconds - device.run_s - device.call_s * len(of.rows))


def _longer(took: Duration, more_s: float) -> Duration:
    """What comes on top is as uncertain as it is long."""
    errors = dict(took.errors)
    errors["growth"] = errors.get("growth", 0.0) + more_s
    return Duration(took.seconds + more_s, errors)


def _scaled(nbytes: tuple[tuple[int, int], ...], factor: float) -> tuple[tuple[int, int], ...]:
    return tuple((executor, int(of * factor)) for executor, of in nbytes)

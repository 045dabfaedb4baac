"""Policies: a graph as text in, the executor of each row out."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from remora.errors import PlanError, UsageError
from remora.ir.annotated_text import parse_graph
from remora.ops.cost import Kind
from remora.plan.devices import Device, Link, Pool, Rates, flat
from remora.plan.duration import difference
from remora.plan.estimate import costs
from remora.plan.policies import POLICIES, policy_named
from remora.plan.policies.semantic import DOUBT, SIGMAS
from remora.plan.situation import Situation

MB = 1 << 20

# Two layers with a weight of 1 MB each, one of them with a cache of 2 MB; rows between them have no weights.
LAYERS = """graph ANNOTATED keep=%3
$0 = float32[1,512] storage=0 uploaded input "input: test"
$1 = float32[512,512] storage=1 uploaded weight layer=0 "weight: test"
$2 = float32[512,512] storage=2 uploaded weight layer=1 "weight: test"
$3 = float32[1,8,1024,64] storage=3 age=1 kv_cache layer=1 "cache: test"
%0 = aten.linear.default($0, $1) | float32[1,512] activation decode layer=0 "layer: test"
%1 = aten.add.Tensor(%0, $0) | float32[1,512] activation decode layer=0 "layer: test"
%2 = aten.linear.default(%1, $2) | float32[1,512] activation decode layer=1 "layer: test"
%3 = aten.cat.default([$3, %2], int) | float32[1,8,1025,64] kv_cache decode layer=1 "cache: test"
%4 = aten.scaled_dot_product_attention.default(%2, %3, %3) | float32[1,512] activation decode layer=1 "layer: test"
%5 = aten.neg.default(%4) | float32[1,512] output decode "output: test"
"""


TWO_TOWERS = """graph ANNOTATED holes=[] keep=%8
$0 = float32[512,512] storage=0 uploaded input "input: test"
$1 = float32[512,512] storage=1 uploaded input "input: test"
$2 = float32[512,512] storage=2 uploaded weight layer=0 "weight: test"
$3 = float32[512,512] storage=3 uploaded weight layer=1 "weight: test"
$4 = float32[512,2048] storage=4 uploaded weight layer=0 "weight: test"
$5 = float32[2048,2048] storage=5 uploaded weight layer=1 "weight: test"
%0 = aten.linear.default($0, $2) | float32[512,512] module="Net.image.layers.0.fc (Linear)" forward layer=0 "l: t"
%1 = aten.gelu.default(%0) | float32[512,512] module="Net.image.layers.0 (Layer)" forward layer=0 "l: t"
%2 = aten.linear.default(%1, $3) | float32[512,512] module="Net.image.layers.1.fc (Linear)" forward layer=1 "l: t"
%3 = aten.gelu.default(%2) | float32[512,512] module="Net.image.layers.1 (Layer)" forward layer=1 "l: t"
%4 = aten.mm.default($1, $4) | float32[512,2048] module="Net.text.layers.0.fc (Linear)" forward layer=0 "l: t"
%5 = aten.gelu.default(%4) | float32[512,2048] module="Net.text.layers.0 (Layer)" forward layer=0 "l: t"
%6 = aten.mm.default(%5, $5) | float32[512,2048] module="Net.text.layers.1.fc (Linear)" forward layer=1 "l: t"
%7 = aten.gelu.default(%6) | float32[512,2048] module="Net.text.layers.1 (Layer)" forward layer=1 "l: t"
%8 = aten.mm.default(%3, %7) | float32[512,2048] module="Net (Net)" forward "l: t"
"""


def device(name: str, rate: float = 100.0 * MB) -> Device:
    move = Rates(0.0, flat(rate), flat(rate), sigma=0.1)
    return Device(name, 1 << 30, 0.0, 0.0, 0.0, {Kind.MOVE: move, Kind.PRODUCT: move}, sigma=0.1)


def pool(*rates: float) -> Pool:
    n = len(rates)
    links = {(a, b): Link(10.0 * MB, 1e-3) for a in range(n) for b in range(n) if a != b}
    return Pool(
        tuple(device(f"d{at}", rate * MB) for at, rate in enumerate(rates)),
        links,
        (Link(10.0 * MB, 1e-3),) * n,
    )


def replace_links(of: Pool, link: Link) -> Pool:
    return Pool(of.devices, dict.fromkeys(of.links, link), (link,) * len(of.devices))


def situation(owners, rates=(100, 100), limit=1 << 30, held=None, **more) -> Situation:
    homes = tuple(frozenset() if at is None else frozenset({at}) for at in owners)
    n = len(rates)
    return Situation(owners, homes, held or (0,) * n, (limit,) * n, (0,) * n, pool=pool(*rates), **more)


def place(policy: str, owners, text: str = LAYERS, **more):
    graph, at = parse_graph(text), situation(owners, **more)
    return policy_named(policy).place(graph, at, costs(graph, at.pool.devices))


def test_an_unknown_policy_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"no placement 'best'; there are semantic, local, blind"):
        policy_named("best")


def test_semantic_stays_where_weights_and_cache_are():
    for home in (0, 1):
        wish = place("semantic", (home,) * 4)
        assert set(wish.executors) == {home}
        assert wish.what == f"all on executor {home}"
        assert "moves the fewest bytes, 0" in wish.reason
        assert wish.alternative_took.seconds > 0.2  # the other one would need the cache and the weights first


def test_semantic_runs_each_layer_where_what_it_reads_stays():
    wish = place("semantic", (0, 0, 1, 1))
    assert wish.executors == (0, 0, 1, 1, 1, 1)
    assert wish.what == "each row where what it reads stays"


def test_data_aware_brings_the_smaller_weight_instead():
    assert set(place("data_aware", (0, 0, 1, 1)).executors) == {1}


def test_attention_follows_the_cache_that_another_layer_s_executor_holds():
    executors = place("semantic", (0, 0, 0, 1)).executors
    assert executors[3:5] == (1, 1)
    assert executors[:3] == (0, 0, 0)


@pytest.mark.parametrize("names", [("image", "text"), ("net", "net")])
def test_layers_of_two_towers_with_the_same_number_are_not_one(names):
    """Rows between weights are with their own tower's, as many bytes as the other tower's layer may have; also where
    both are models of one form, whose layers have the same names."""
    text = TWO_TOWERS.replace("Net.image.", f"Net.{names[0]}.").replace("Net.text.", f"Net.{names[1]}.")
    wish = place("semantic", (None, None, 0, 0, 1, 1), text)
    assert wish.executors == (0, 0, 0, 0, 1, 1, 1, 1, 1)
    assert wish.what == "each row where what it reads stays"


def test_semantic_puts_new_weights_on_a_clearly_faster_executor_only():
    nobody = (None, None, None, None)
    assert set(place("semantic", nobody, rates=(100, 103)).executors) == {0}
    wish = place("semantic", nobody, rates=(1, 100))
    assert set(wish.executors) == {1}
    assert "predicted faster" in wish.reason


def test_semantic_never_moves_state_for_a_gain_within_the_error():
    assert set(place("semantic", (1,) * 4, rates=(104, 100)).executors) == {1}


def test_noise_of_the_calibration_moves_nothing_and_costs_no_more_than_its_error():
    """Two equal devices, measured with the error that they declare, on links that cost almost nothing."""
    rng, moved, trials = random.Random(1), 0, 400
    graph = parse_graph(LAYERS)
    for _ in range(trials):
        measured = [100.0 * rng.lognormvariate(0.0, 0.1) for _ in range(2)]
        near = replace_links(pool(*measured), Link(1e6 * MB, 1e-9))
        home = rng.randrange(2)
        at = replace(situation((home,) * 4), pool=near)
        table = costs(graph, near.devices)
        wish = policy_named("semantic").place(graph, at, table)
        moved += set(wish.executors) != {home}
        best, taken = (table.part(executor).duration for executor in (0, 1)), table.part(wish.executors[0])
        fastest = min(best, key=lambda took: took.seconds)
        gain = difference(taken.duration, fastest)
        assert gain.seconds <= SIGMAS * gain.sigma_s + DOUBT * fastest.seconds + 1e-6
    assert moved <= trials / 100


def test_a_model_that_no_executor_holds_is_cut_between_its_layers():
    wish = place("semantic", (None, None, None, 1), limit=7 * MB, held=(4 * MB, 2 * MB), rates=(100, 100))
    assert wish.executors == (0, 0, 1, 1, 1, 1)


def test_a_pool_that_is_too_small_says_the_arithmetic():
    with pytest.raises(PlanError) as refused:
        place("semantic", (None, None, None, 1), limit=4 * MB, held=(4 * MB, 2 * MB), waiting_nbytes=2 * MB)
    text = str(refused.value)
    assert "hold 6,291,456 bytes" in text
    assert "2,097,152 more from the client" in text
    assert "grant 8,388,608 together" in text
    assert "missing" in text


def test_what_has_to_get_somewhere_leaves_room_there_for_what_is_computed():
    """All on the faster executor would take 9 MB there: of 10 that fits, but is more than uploads may fill."""
    owners = (None, None, None, 1)
    for limit, executor in ((11 * MB, 0), (10 * MB, 1)):
        wish = place("semantic", owners, limit=limit, held=(3 * MB, 4 * MB), rates=(1000, 1))
        assert wish.executors[3] == executor  # the row of the cache


def test_split_puts_the_cache_and_its_attention_on_the_last():
    assert place("split", (0,) * 4, rates=(1, 1, 1)).executors == (0, 0, 0, 2, 2, 0)


def test_an_upload_that_nobody_used_goes_with_the_others_while_there_is_room():
    semantic = policy_named("semantic")
    assert semantic.home(MB, situation((), held=(0, 4 * MB), limit=10 * MB)) == 1
    assert semantic.home(6 * MB, situation((), held=(0, 4 * MB), limit=10 * MB)) == 0
    assert semantic.home(MB, situation((), rates=(100, 200))) == 1
    for name in sorted(POLICIES.keys() - {"semantic"}):
        assert policy_named(name).home(MB, situation(())) == 0

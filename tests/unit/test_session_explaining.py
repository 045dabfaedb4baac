"""From a hand-made ledger and holdings to the explanation."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from remora.capture.recorder import CapturedTemplate
from remora.ir.annotated import Facts, Meaning, Residency
from remora.ir.annotated_text import parse_graph
from remora.ir.graph import Template
from remora.ops.cost import Kind
from remora.plan.devices import CLIENT, Device, Link, Pool, Rates, flat
from remora.plan.duration import Duration
from remora.plan.explain import Executor, Explanation, Held, Transfer, from_json
from remora.plan.planner import Planner
from remora.plan.policies.policy import Policy, Wish
from remora.plan.situation import Situation
from remora.session.explaining import Observed, explanation, ranged
from remora.session.holdings import Holdings, Made
from remora.session.ledger import Ledger
from remora.session.plans import Plan, Timed, Use, plan_of
from remora.session.stats import Stats
from remora.wire.messages import Grant, Marked, Pushed

KB = 1024


def device(name: str) -> Device:
    """Moves 1 MB a second, and nothing else takes time."""
    move = Rates(0.0, flat(1e6), flat(1e6))
    return Device(name, 1 << 30, 0.0, 0.0, 0.0, {Kind.MOVE: move, Kind.PRODUCT: move})


LINK = Link(1e6, 0.001)
POOL = Pool(
    (device("cpu at http://a:1"), device("cpu at http://b:1")), {(0, 1): LINK, (1, 0): LINK}, (LINK, LINK)
)

# One layer: a weight's product, and a cache that grows.
LAYER = """
graph CAPTURED holes=[-2] keep=%1
$0 = float32[16,16] storage=50 uploaded
$1 = float32[1,16] storage=51 uploaded
$2 = float32[1,7,16] storage=52
%0 = aten.linear.default($1, $0) | float32[1,16] module="Net.h.0.attn (Attention)"
%1 = aten.cat.default([$2, %0], int) | float32[1,8,16] module="Net.h.0.attn (Attention)"
"""


class There(Policy):
    """Everything on one executor; alternatively on the other."""

    name = "there"

    def __init__(self, executor: int, instead_s: float) -> None:
        self.executor, self.instead_s = executor, instead_s

    def place(self, graph, situation, costs):
        what, other = f"all on executor {self.executor}", f"all on executor {1 - self.executor}"
        here = (self.executor,) * len(graph.rows)
        return Wish(here, what, f"it moves {len(graph.rows):,} bytes", other, Duration(self.instead_s))


def plan(
    policy: Policy, text: str = LAYER, phases: dict[str, int] | None = None, random: tuple[int, ...] = ()
) -> Plan:
    """As Placement makes it, for values that all are on executor 0 but for what no executor has."""
    graph = parse_graph(text.lstrip())
    homes = tuple(frozenset[int]() if slot.uploaded else frozenset({0}) for slot in graph.slots)
    owners = tuple(None if slot.uploaded else 0 for slot in graph.slots)
    planner = Planner(policy, POOL)
    decision = planner.decide(
        graph,
        Situation(owners, homes, (0, 0), (1 << 30, 1 << 30), (0, 0), generators=0, random=random, pool=POOL),
    )
    template = Template(tuple(row.node for row in graph.rows))
    captured = CapturedTemplate(template, 0, (None,) * len(graph.rows))
    made = plan_of(
        decision, captured, (len(graph.rows) - 1, 0), 1000, homes, itertools.count(-1, -1).__next__, 0.25
    )
    made.phases.clear()
    made.phases.update({"decode": len(graph.rows)} if phases is None else phases)
    return made


@dataclass
class Session:
    """What a session does to its ledger and holdings."""

    ledger: Ledger = field(default_factory=lambda: Ledger(POOL, itertools.count(1).__next__))
    holdings: Holdings = field(default_factory=lambda: Holdings(2))
    now_s: float = 0.0

    def program(self, *uses: Use, seconds: float = 0.5) -> None:
        for use in uses:
            self.ledger.runs(use, self.now_s)
        self.now_s += seconds
        phase = self.ledger.program_ends(self.now_s)
        if phase is not None:
            phase.living, phase.living_at = self.holdings.living(), phase.steps

    def explained(self) -> Explanation:
        grant = Grant("s", "", 0, "e", 1, "2.13.0", "cpu", "", 60.0, 1 << 30, 8, 1 << 20, "p")
        executors = [(f"http://{name}:1", grant) for name in "ab"]
        stats = Stats(bytes_sent=100, round_trips=3)
        return explanation(Observed("there", executors, POOL, self.holdings, self.ledger, 0, stats))


def of(tree: Explanation, phase: str):
    """The phase of that name."""
    (found,) = [each for each in tree.phases if each.name == phase]
    return found


def test_a_new_session_explains_nothing():
    tree = Session().explained()
    assert (tree.policy, tree.phases, tree.choices, tree.templates) == ("there", (), (), ())
    assert tree.executors == (
        Executor("http://a:1", "cpu", 1 << 30),
        Executor("http://b:1", "cpu", 1 << 30),
    )
    assert "nothing lives here" in str(tree)


def test_what_lives_somewhere_is_counted_once_a_storage():
    session = Session()
    holdings = session.holdings
    weight, loose = Facts("float32", (16, 16), 4), Facts("float32", (5,), 4)
    for key, facts in (((1, 0), weight), ((2, 0), loose), ((3, 0), weight)):
        holdings.uploaded(key, facts)
    holdings.arrived((1, 0), 0)
    holdings.arrived((2, 0), 0)  # and the third is on no executor
    first = plan(There(0, 1.0))
    use = Use(first, (0, 1, 9))
    session.program(use)
    holdings.called((1, 0), "Net.h.3.attn")
    place = holdings.places[1, 0]
    place.meaning, place.reads = Meaning(Residency.WEIGHT), 1
    whole, by = Facts("float32", (1, 4, 16), 4), (first.graph.rows[1].node, 0)
    made = Made(0, 0, 1, whole, whole.nbytes, by, Meaning(Residency.KV_CACHE), first.graph.template, (), 1)
    grown = Facts("float32", (1, 8, 16), 4)  # since the plan was made
    storage = holdings.made((4, 0), made, None, 1, use, (grown, grown.nbytes))
    holdings.made((5, 0), replace(made, meaning=Meaning()), storage, 1)  # a view of it
    tree = session.explained()
    assert tree.executors[0].held == (Held("weight", KB, 1, ("h.3",)), Held("unused", 20, 1))
    # its row's path is that of the first layer that ran it; the weight which that use read says which one it was
    assert tree.executors[1].held == (Held("kv_cache", 512, 1, ("h.3",)),)


def test_an_upload_shows_as_what_it_turned_out_to_be_when_it_is_used():
    session = Session()
    ledger, layer = session.ledger, Use(plan(There(0, 1.0)), (0, 1, 2))
    ledger.uploads(1, 0, KB, True)  # bound before anything used it
    ledger.sent(1, KB, 0.25)
    session.program(Use(plan(There(0, 1.0), phases={}), (9, 9, 9)))
    ledger.uploads(2, 0, 64, False)
    ledger.runs(layer, session.now_s)
    ledger.used(1, "weight")
    ledger.used(2, "input")
    session.now_s += 1.0
    ledger.program_ends(session.now_s)
    tree = session.explained()
    weight, tokens = of(tree, "decode").transfers
    assert weight == Transfer(CLIENT, 0, "weight", KB, 1, pytest.approx(0.001 + KB / 1e6), 0.25)
    assert (tokens.residency, tokens.nbytes, tokens.measured_s) == ("input", 64, None)
    assert of(tree, "other").transfers == ()


def test_bytes_that_an_executor_had_already_did_not_go():
    session = Session()
    session.ledger.uploads(1, 1, KB, True)
    session.ledger.runs(Use(plan(There(1, 1.0)), (0, 1, 2)), 0.0)
    session.ledger.used(1, "weight")  # before its turn to be sent
    session.ledger.sent(1, 0, 0.01)
    session.ledger.program_ends(1.0)
    tree = session.explained()
    assert [(t.target, t.nbytes, t.count) for t in of(tree, "decode").transfers] == [(1, 0, 1)]
    assert any("1.0 KiB of uploads did not go" in note for note in tree.notes)


def test_what_nothing_used_is_said():
    session = Session()
    session.ledger.uploads(1, 0, 100, False)
    session.ledger.uploads(2, 1, 200, False)
    session.program(Use(plan(There(0, 1.0)), (0, 1, 2)))
    session.ledger.used(2, "unused")  # it has ended
    session.program(Use(plan(There(0, 1.0)), (0, 1, 2)))
    tree = session.explained()
    assert [(t.residency, t.nbytes) for t in of(tree, "not used yet").transfers] == [("unused", 100)]
    assert [(t.residency, t.nbytes) for t in of(tree, "decode").transfers] == [("unused", 200)]
    assert "not used yet: 100 B moved" in str(tree)


def test_a_program_has_the_phases_of_most_of_its_rows():
    session = Session()
    training = plan(There(0, 1.0), phases={"forward": 40, "backward": 60})
    decode = plan(There(0, 1.0), phases={"forward": 10, "decode": 90})
    session.program(Use(training, (0, 1, 2)), seconds=2.0)
    session.program(Use(decode, (0, 1, 2)), Use(decode, (0, 1, 2)), seconds=1.0)
    session.program(Use(decode, (0, 1, 2)), seconds=1.0)
    tree = session.explained()
    assert [(phase.name, phase.steps, phase.measured_s) for phase in tree.phases] == [
        ("forward+backward", 1, 2.0),
        ("decode", 2, 2.0),
    ]
    assert of(tree, "decode").predicted_s == pytest.approx(3 * decode.whole.seconds)


def test_a_program_that_fails_does_not_count():
    session = Session()
    layer = Use(plan(There(0, 1.0)), (0, 1, 2))
    session.ledger.runs(layer, 0.0)
    session.ledger.program_fails()
    session.now_s = 100.0
    session.program(layer, seconds=1.0)
    assert of(session.explained(), "decode").measured_s == 1.0


def test_transfers_belong_to_their_program_though_they_are_answered_later():
    session = Session()
    ledger, layer = session.ledger, Use(plan(There(0, 1.0)), (0, 1, 2))
    ledger.runs(layer, 0.0)
    ticket = ledger.pushes_to(0, 1, (1, 0, 0), Counter({"kv_cache": 3000, "activation": 1000}))
    ledger.program_ends(1.0)
    ledger.pushed(Pushed(ticket, 4100, 0.04))
    ledger.returns(1, "output", 1)
    first = of(session.explained(), "decode")
    assert first.transfers == (
        Transfer(0, 1, "kv_cache", 3000, 1, pytest.approx(0.00375), pytest.approx(0.03)),
        Transfer(0, 1, "activation", 1000, 1, pytest.approx(0.00125), pytest.approx(0.01)),
        Transfer(1, CLIENT, "output", 1, 1, pytest.approx(0.001001), None),
    )
    ledger.pushes_to(0, 1, (2, 0, 0), Counter({"kv_cache": 500}))  # of a program that goes on
    assert of(session.explained(), "decode").transfers[0].nbytes == 3500


def test_templates_are_what_timed_runs_showed():
    session = Session()
    layer = plan(There(1, 1.0))
    for _ in range(4):
        session.program(Use(layer, (0, 1, 2)))
    for predicted_s, measured_s in ((0.2, 0.4), (0.3, 0.5), (0.4, 0.9)):
        layer.ran.timed.append(Timed(Duration(predicted_s, {"x": 0.01}), (measured_s,)))
    never_timed = plan(There(0, 1.0))
    session.program(Use(never_timed, (0, 1, 2)))
    tree = session.explained()
    first, second = tree.templates
    assert first.id == layer.template.hex()[:8]
    assert (first.phase, first.rows, first.executors, first.runs) == ("decode", 2, (1,), 4)
    assert (first.predicted_s, first.error_s, first.measured_s, first.planning_s) == (0.3, 0.01, 0.5, 0.25)
    assert (second.measured_s, second.runs) == (None, 1)
    assert second.predicted_s == pytest.approx(sum(part.seconds for part in never_timed.predicted))
    assert of(tree, "decode").computed_s == pytest.approx(4 * 0.5 + second.predicted_s)


def test_equal_choices_are_one():
    session = Session()
    other = (
        LAYER.replace("%0 = ", "%0 = aten.neg.default($1) | float32[1,16]\n%1 = ")
        .replace("%1 = aten.cat.default([$2, %0]", "%2 = aten.cat.default([$2, %1]")
        .replace("keep=%1", "keep=%2")
    )
    two, three = plan(There(0, 0.5)), plan(There(0, 0.25), other)
    session.program(Use(two, (0, 1, 2)), Use(three, (0, 1, 2)))
    session.program(Use(two, (0, 1, 2)))
    session.program(Use(plan(There(1, 2.0), phases={"prefill": 2}), (0, 1, 2)))
    decode, prefill = sorted(session.explained().choices, key=lambda choice: choice.subject)
    assert decode.subject == "decode, 2 templates of 2 to 3 rows, run 3 times"
    assert decode.chosen == "all on executor 0"
    assert decode.reason == "it moves 2 to 3 bytes"
    assert decode.predicted_s == pytest.approx(two.whole.seconds + three.whole.seconds)
    assert (decode.alternative, decode.alternative_s) == ("all on executor 1", 0.75)
    assert (prefill.subject, prefill.chosen) == ("prefill, 2 rows, run 1 time", "all on executor 1")


def test_rows_that_are_bound_elsewhere_are_said():
    session = Session()
    drawn = plan(There(1, 1.0), random=(0,))
    assert drawn.graph.executors == (0, 1)
    session.program(Use(drawn, (0, 1, 2)))
    all_drawn = plan(There(1, 1.0), random=(0, 1), phases={"prefill": 2})
    session.program(Use(all_drawn, (0, 1, 2)))
    partly, wholly = sorted(session.explained().choices, key=lambda choice: choice.subject)
    assert partly.chosen == "all on executor 1, but for 1 row bound elsewhere"
    assert wholly.chosen == "all on executor 0"
    assert wholly.reason == "what its rows view, write or draw is there (all on executor 1 was wished)"


def test_the_picture_is_of_the_last_warm_step_and_names_its_layers():
    session = Session()
    session.holdings.names.update({10: "Net.h.0.attn", 20: "Net.h.1.attn"})
    layer = plan(There(0, 1.0), LAYER.replace("keep=%1", "keep=%1 wants=%1"))
    prefill = plan(There(1, 1.0), phases={"prefill": 2})
    session.program(Use(prefill, (10, 11, 12)))
    for step in range(3):  # one plan for two layers
        session.program(Use(layer, (10, 11, 100 + step)), Use(layer, (20, 11, 200 + step)))
    picture = session.explained().picture
    assert picture.of == "a step of decode"
    assert picture.columns == ("h.0", "h.1")
    assert {block.executor for block in picture.blocks} == {0}
    assert CLIENT in {edge.target for edge in picture.edges}
    assert "runs      4 rows" in str(session.explained())


def test_runs_are_timed_by_marks():
    session = Session()
    layer = plan(There(0, 1.0))
    session.program(Use(layer, (0, 1, 2)))
    ((before, after),) = session.ledger.runs(Use(layer, (0, 1, 2)), 1.0)
    assert session.ledger.marked(Marked(before, 5.0, 5.0))
    assert session.ledger.marked(Marked(after, 5.5, 5.5))
    session.ledger.program_ends(2.0)
    assert session.explained().templates[0].measured_s == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["one"], "one"),
        (["program 3", "program 12", "program 7"], "program 3 to 12"),
        (["it moves 1,024, of 2", "it moves 8, of 2"], "it moves 8 to 1,024, of 2"),
        (["by 3.5 ± 0.2 ms", "by 10 ± 0.2 ms"], "by 3.5 to 10 ± 0.2 ms"),
    ],
)
def test_numbers_that_differ_become_ranges(texts: list[str], expected: str):
    assert ranged(texts) == expected


def test_json_gives_an_equal_tree_and_text_fits():
    session = Session()
    for _ in range(3):
        session.program(Use(plan(There(0, 1.0)), (0, 1, 2)))
    tree = session.explained()
    assert from_json(tree.to_json()) == tree
    assert max(map(len, str(tree).splitlines())) <= 100


def test_the_oldest_of_too_many_plans_are_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("remora.session.ledger.MAX_PLANS", 2)
    session = Session()
    plans = [plan(There(at % 2, 1.0)) for at in range(3)]
    for each in plans:
        session.program(Use(each, (0, 1, 2)))
    tree = session.explained()
    assert [template.executors for template in tree.templates] == [(1,), (0,)]
    assert of(tree, "decode").steps == 3
    assert "1 older plans are left out" in tree.notes


def test_a_run_that_is_predicted_is_not_timed():
    ledger, use = Session().ledger, Use(plan(There(0, 1.0)), (0, 1, 2))
    assert not ledger.runs(use, 0.0)  # the very first says nothing of the next
    assert [len(ledger.runs(use, 0.0, predicted)) for predicted in (False, True, False)] == [1, 0, 1]
    assert use.plan.ran.count == 4

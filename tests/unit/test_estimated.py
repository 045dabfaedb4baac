"""A session on executors that are not there: what is known in it, what counts as zeros, what it adds up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import remora
from remora.errors import UsageError
from remora.session import connect
from remora.session.estimated import EstimatedSession
from remora.session.rehearsal import rehearsing


@pytest.fixture
def estimating(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Opens an estimated session on these devices."""
    monkeypatch.setattr(connect, "_instead", None)

    def start(devices: str = "h100", links: tuple[str, ...] = (), **options) -> EstimatedSession:
        sessions = rehearsing(devices, links, **options)
        remora.connect("http://nobody.invalid:1")
        (session,) = sessions
        return session

    yield start
    remora.disconnect()


# -- values


def test_what_comes_from_small_uploads_is_computed(estimating) -> None:
    session = estimating()
    ids = torch.tensor([[3, 1, 4, 1, 5]]).to("remora")
    ones = ids.new_ones((1, 5)).cumsum(-1)
    assert (ids * ones).cpu().tolist() == [[3, 2, 12, 4, 25]]
    scale = torch.tensor(0.5).to("remora") * torch.full((2,), 3.0, device="remora")
    assert scale.tolist() == [1.5, 1.5]
    assert session.forecast().reads.guessed == 0


def test_what_comes_from_weights_is_zeros_and_is_told(estimating) -> None:
    session = estimating()
    x = torch.randn(4, 300).to("remora")
    assert (x @ x.T).sum().item() == 0.0
    assert not bool((x.max() > 0).cpu())
    reads = session.forecast().reads
    assert (reads.count, reads.guessed, reads.nbytes) == (2, 2, 4 + 1)
    assert all("test_estimated.py" in line for line, _ in reads.where)


def test_a_loop_that_ends_by_what_is_counted_ends(estimating) -> None:
    estimating()
    n, tokens = torch.tensor([0]).to("remora"), torch.zeros(1, 7, dtype=torch.long, device="remora")
    weights = torch.randn(64, 512).to("remora")
    unfinished = torch.ones(1, dtype=torch.long, device="remora")
    for step in range(10):
        token = (torch.randn(1, 64, device="remora") @ weights).argmax(-1)
        tokens[:, step] = token
        n += 1
        unfinished = unfinished & ~torch.isin(token, torch.tensor([511]).to("remora"))
        assert unfinished.max().item() == 1  # a token that nobody computed is 0, and not the last one
        if n.item() >= 7:
            break
    assert n.item() == 7
    assert tokens.cpu().tolist() == [[0] * 7]


def test_a_token_of_choice_ends_no_text(estimating) -> None:
    """Where 0 ends a text, tokens that nobody computed may be another."""
    estimating(token=7)
    logits = torch.randn(1, 64).to("remora") @ torch.randn(64, 512).to("remora")
    token = logits.argmax(-1)
    ends = torch.isin(token, torch.tensor([0]).to("remora"))
    assert (token.item(), ends.item(), logits.max().item()) == (7, False, 0.0)


def test_writes_in_place_are_seen_through_views(estimating) -> None:
    estimating()
    x = torch.zeros(2, 3, dtype=torch.long).to("remora")
    row = x[1]
    row += torch.tensor([1, 2, 3]).to("remora")
    x[0].copy_(row)
    assert x.cpu().tolist() == [[1, 2, 3], [1, 2, 3]]


def test_random_numbers_count_as_zeros(estimating) -> None:
    session = estimating()
    x = torch.ones(3, device="remora")
    x.uniform_()
    assert x.tolist() == [0.0, 0.0, 0.0]
    assert torch.randint(1, 9, (2,), device="remora").tolist() == [0, 0]
    assert session.forecast().reads.guessed == 2


def test_shapes_that_known_values_tell_are_known_and_others_name_the_line(estimating) -> None:
    estimating()
    mask = torch.tensor([True, False, True]).to("remora")
    assert mask.nonzero().shape == (2, 1)
    assert torch.tensor([5, 6, 7]).to("remora")[mask].tolist() == [5, 7]
    x = torch.randn(40, 40).to("remora")
    with pytest.raises(UsageError, match=r"aten\.nonzero.*test_estimated\.py:\d+ depends on data"):
        x.nonzero()


# -- memory


def test_no_bytes_are_needed_of_what_is_uploaded(estimating) -> None:
    session = estimating(memory_nbytes=3 << 40)
    with torch.device("meta"):
        layer = torch.nn.Linear(1 << 19, 1 << 19, bias=False)
    layer = layer.to("remora")
    assert layer.weight.device.type == "remora"
    layer(torch.ones(1, 1 << 19, device="remora")).sum().item()
    forecast = session.forecast()
    assert forecast.fits
    assert forecast.executors[0].held["weight"] == 4 << 38
    (upload,) = [flow for flow in forecast.traffic if flow.residency == "weight"]
    assert upload.nbytes == 4 << 38


def test_a_model_that_is_too_large_lacks_what_it_lacks(estimating) -> None:
    session = estimating(memory_nbytes=1 << 20)
    x = torch.ones(1024, 512, device="remora")
    y = x + 1
    y.sum().item()
    forecast = session.forecast()
    assert not forecast.fits
    assert forecast.executors[0].peak_nbytes == (4 << 20) + 4
    assert forecast.executors[0].missing_nbytes == (3 << 20) + 4


def test_where_there_is_no_place_the_script_goes_on_to_see_what_it_takes(estimating) -> None:
    session = estimating("a10,a10", memory_nbytes=3 << 20)
    with torch.device("meta"):
        layers = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(3)))
    layers.to("remora")(torch.ones(1, 1024, device="remora")).sum().item()
    forecast = session.forecast()
    assert not forecast.fits
    assert "the pool is too small" in forecast.refused
    assert sum(one.held["weight"] for one in forecast.executors if one.held) == 12 << 20
    assert sum(one.missing_nbytes for one in forecast.executors) > 6 << 20
    assert [one.cap_nbytes for one in forecast.executors] == [3 << 20] * 2
    assert forecast.phases[0].steps == 1


# -- time and bytes


def test_the_executors_time_is_what_the_device_needs(estimating) -> None:
    """A matrix of 2 GiB is read once a step; 3.35 TB/s are the peak of an H100."""
    session = estimating("h100", ("10gbit,5ms",))
    w = torch.nn.Linear(1 << 15, 1 << 14, bias=False, device="meta").to("remora")
    x = torch.ones(1, 1 << 15, device="remora")
    for _ in range(5):
        with torch.no_grad():
            w(x).sum().item()
    (phase,) = session.forecast().phases
    assert phase.steps == 5
    assert 1.0 < phase.executors_s / ((2 << 30) / 3.35e12) < 2.0
    assert phase.step_s > phase.executors_s + 0.010  # the way there and back
    assert 0 < phase.sigma_s < phase.step_s


def test_uploads_are_told_apart_from_the_step_that_reads_them(estimating) -> None:
    session = estimating("h100", ("1gbit,0ms",), placement="semantic")
    w = torch.nn.Linear(1 << 13, 1 << 12, bias=False, device="meta").to("remora")
    with torch.no_grad():
        w(torch.ones(1, 1 << 13, device="remora")).sum().item()
    forecast = session.forecast()
    (upload,) = [flow for flow in forecast.traffic if flow.residency == "weight"]
    assert upload.seconds > (4 << 25) / 1.25e8
    assert forecast.phases[0].executors_s < 0.01


def test_bytes_between_executors_are_named(estimating) -> None:
    session = estimating("a10,a10", placement="blind")
    x = torch.ones(1 << 16, device="remora")
    x.sum().item()
    (x + 1).sum().item()
    between = [flow for flow in session.forecast().traffic if (flow.source, flow.target) == (0, 1)]
    assert sum(flow.nbytes for flow in between) == 4 << 16
    assert all(flow.seconds > flow.sigma_s > 0 for flow in between)


def test_where_each_executor_is_a_device_uploads_go_where_the_program_says(estimating) -> None:
    session = estimating("a10,l4", placement="explicit")
    x = torch.ones(1 << 16).to("remora:1")
    assert (x + 1).sum().item() == 0.0
    assert torch.tensor([1, 2]).to("remora:0").sum().item() == 3
    (large,) = [flow for flow in session.forecast().traffic if flow.nbytes == 4 << 16]
    assert large.target == 1
    assert torch.remora.get_device_properties(1).name == "l4"


def test_events_tell_predicted_seconds(estimating) -> None:
    estimating()
    w = torch.nn.Linear(1 << 15, 1 << 14, bias=False, device="meta").to("remora")
    x = torch.ones(1, 1 << 15, device="remora")
    before, after = (torch.Event(device="remora", enable_timing=True) for _ in range(2))
    w(x).sum().item()
    before.record()
    w(x)
    after.record()
    after.synchronize()
    assert before.elapsed_time(after) >= (2 << 30) / 3.35e12 * 1e3


def test_a_session_that_was_closed_is_still_told(estimating) -> None:
    session = estimating()
    torch.ones(3, device="remora").sum().item()
    remora.disconnect()
    assert session.forecast().reads.count == 1


# -- what is named


@pytest.mark.parametrize(
    ("devices", "links", "said"),
    [
        ("h300", (), "no device is called 'h300'; there is: h100"),
        (" , ", (), "names no device"),
        ("h100", ("fast",), "is no link"),
        ("h100,a10,l4", ("1gbit", "2gbit"), "given 2 times for 3 devices"),
        ("h100,cpu-2core", (), "must compute alike"),
        ("absent.json", (), "absent.json"),
    ],
)
def test_what_does_not_exist_is_named(estimating, devices: str, links: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        estimating(devices, links)


def test_each_executor_has_its_own_link_and_the_slower_end_counts_between_them(estimating) -> None:
    pool = estimating("h100,a10", ("10gbit,1ms", "1gbit,20ms")).pool
    assert [link.latency_s for link in pool.client] == [1e-3, 20e-3]
    assert pool.link(0, 1).latency_s == 20e-3
    assert pool.link(1, 0).bytes_per_s == pool.client[1].bytes_per_s

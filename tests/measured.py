"""Records that nobody measured, for tests of what is made of records; no number in them is a result."""

from __future__ import annotations

from collections.abc import Iterator

from remora.bench.records import CLIENT, MEASURED, SIMULATED, Bar, Link, Record, Row, Run, Sample, way

RATES = (0.56, 1.0, 10.0, 25.0, 100.0)
CACHES = (128, 1024, 8192, 65536)
WOBBLE = (1.0, 1.03, 0.98, 1.01, 1.06, 0.99, 1.02)
TOKEN_NBYTES = 3072


def run(name: str, experiment: str, started: str = "2026-01-02T03:04:05Z", quick: bool = False) -> Run:
    return Run(
        run=name,
        experiment=experiment,
        command=f"remora bench {experiment}" + (" --quick" if quick else ""),
        commit="abc1234",
        started=started,
        versions={"python": "3.11.7", "torch": "2.13.0", "machine": "Linux x86_64"},
        quick=quick,
    )


def seed() -> Iterator[Record]:
    """Measured up to 1 Gbit/s, simulated beyond."""
    yield run("s1", "seed")
    for gbit_per_s in RATES:
        for tokens in CACHES:
            moved = {"blind": tokens * TOKEN_NBYTES, "aware": TOKEN_NBYTES, "resident": 60}
            for arm, nbytes in moved.items():
                step_s = 0.0003 + nbytes * 8 / (gbit_per_s * 1e9) + (0.0004 if arm != "resident" else 0.0)
                real = gbit_per_s <= 1
                yield Sample(
                    run="s1",
                    experiment="seed",
                    workload="seed",
                    arm=arm,
                    link=Link(by="netns" if real else "model", gbit_per_s=gbit_per_s),
                    executors=2,
                    unit="step",
                    units=10,
                    shape={"cache_tokens": tokens},
                    how=MEASURED if real else SIMULATED,
                    seconds=[10 * step_s * wobble for wobble in WOBBLE] if real else [10 * step_s],
                    nbytes={way(0, 1): [10 * nbytes] * (7 if real else 1)},
                    predicted_s=9.6 * step_s if real else None,
                    identical=True if real else None,
                )
    yield Bar(run="s1", experiment="seed", name="resident, ms", value=0.33, op="<=", bar=0.4, ok=True)
    yield Bar(run="s1", experiment="seed", name="resident, B", value=460, op="<=", bar=400, ok=False)
    yield Bar(run="s1", experiment="seed", name="outputs that differ", value=0, op="==", bar=0, ok=True)


def tokens(
    experiment: str, arms: dict[str, float], rtts: tuple[float, ...], workload: str
) -> Iterator[Record]:
    """arms: ms a token without a link; all but resident and local wait for one round trip a token."""
    for rtt_ms in rtts:
        for arm, ms in arms.items():
            waits = 0.0 if arm in ("resident", "local", "remora") else rtt_ms
            yield Sample(
                run=f"{experiment}-run",
                experiment=experiment,
                workload=workload,
                arm=arm,
                link=Link(by="proxy", rtt_ms=rtt_ms),
                executors=0 if arm == "local" else 1,
                unit="token",
                units=32,
                seconds=[32 * (ms + waits) / 1e3 * wobble for wobble in WOBBLE],
                nbytes={way(CLIENT, 0): [32 * int(100 * ms)] * len(WOBBLE)},
                identical=True,
            )


def modes() -> Iterator[Record]:
    yield run("modes-run", "modes")
    arms = {"local": 40.0, "full KV both ways": 120.0, "delta KV": 60.0, "handle": 50.0, "semantic": 44.0}
    yield from tokens("modes", arms, (0.0, 10.0, 50.0), "GPT-2")
    yield from tokens(
        "modes", {"local": 5.0, "handle": 9.0, "semantic": 6.0}, (0.0, 10.0, 50.0), "12 thin layers"
    )


def scale() -> Iterator[Record]:
    yield run("scale-run", "scale")
    usual = {"layers": 12.0, "width": 64.0, "context": 128.0, "batch": 1.0, "clients": 1.0, "executors": 1.0}
    varied = {
        "layers": (2, 6, 12, 24, 48),
        "width": (64, 128, 256, 512),
        "context": (128, 512, 2048),
        "batch": (1, 2, 4, 8),
        "clients": (1, 2, 4),
        "executors": (1, 2),
    }
    for quantity, sizes in varied.items():
        for size in sizes:
            for arm, factor in (("local", 1.0), ("remote", 1.1)):
                shape = usual | {quantity: float(size)}
                ms = factor * (1 + 0.3 * shape["layers"] * (shape["width"] / 64) * shape["clients"] ** 0.5)
                yield Sample(
                    run="scale-run",
                    experiment="scale",
                    workload="small Llama",
                    arm=arm,
                    link=Link(by="loopback"),
                    executors=0 if arm == "local" else int(shape["executors"]),
                    unit="token",
                    units=16,
                    shape=shape,
                    seconds=[16 * ms / 1e3 * wobble for wobble in WOBBLE],
                    identical=True,
                )


def peers() -> Iterator[Record]:
    yield run("peers-run", "peers")
    yield from tokens(
        "peers", {"local": 40.0, "remora": 41.0, "SkyTorch": 55.0}, (0.0, 50.0), "GPT-2 generate"
    )
    yield Row(
        run="peers-run",
        experiment="peers",
        measure="load",
        arm="before",
        unit="processes",
        median=1.0,
        low=1.0,
        high=1.0,
        trials=1,
        low95=None,
        high95=None,
    )
    yield Bar(
        run="peers-run",
        experiment="peers",
        name="<b>not</b> measured",
        value=None,
        op="<=",
        bar=1.0,
        ok=False,
    )


def everything() -> list[Record]:
    return [*seed(), *modes(), *scale(), *peers()]

"""The experiment `compat`: every op of PyTorch's OpInfo database on remora against the local CPU.

Ops run in child processes, so that one which ends its process, or never ends, is counted and the run goes on.
"""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from remora.bench import compat_table
from remora.bench.harness import Options, Report
from remora.pool.embedded import EmbeddedExecutor

BAR = 0.99
PER_CHILD = 150  # ops; what PyTorch keeps for ever stays bounded
START_S = 120.0
OP_S = 90.0  # one op, all dtypes and samples; most take 0.1 s
QUICK_OPS = 80


@dataclass
class Result:
    """One op: what differed, nothing if all was equal. compared: calls that the CPU made too."""

    name: str
    compared: int
    failures: list[dict[str, str]] = field(default_factory=list)
    blocks: int = 0

    @property
    def passed(self) -> bool:
        return not self.failures


def run(options: Options, report: Report) -> None:
    """One thread in the client, one in the executor."""
    names = _chosen(options)
    report.say(f"{len(names)} ops")
    results = sweep(names, options.url, report)
    compared = [result for result in results if result.compared or result.failures]
    passed = [result for result in compared if result.passed]
    for kind, n in compat_table.kinds(compared).items():
        report.row("ops that fail", kind, "ops", [n])
    report.row("calls compared", "remora, CPU", "calls", [sum(result.compared for result in compared)])
    report.row("ops that the CPU refuses as well", "skipped", "ops", [len(results) - len(compared)])
    report.row("ops compared", "remora, CPU", "ops", [len(compared)])
    report.say(compat_table.text(compared))
    if options.write is not None:
        compat_table.write(options.write, compared)
        report.say(f"wrote {options.write}")
    report.bar("OpInfo ops that pass, share of all", len(passed) / max(len(compared), 1), ">=", BAR)


def _chosen(options: Options) -> list[str]:
    names = _op_names()
    if options.only:
        chosen = [name for name in names if options.only in (name, name.partition(".")[0], _base(name))]
        if not chosen:
            raise KeyError(f"op_db has no op {options.only!r}")
        return chosen
    if options.quick:
        return sorted(random.Random(options.seed).sample(names, QUICK_OPS))
    return names


def _base(name: str) -> str:
    return name.rpartition(".")[0]


def _op_names() -> list[str]:
    from torch.testing._internal.common_methods_invocations import op_db

    from remora.bench.compat_compare import full_name

    return [full_name(op) for op in op_db]


def sweep(names: list[str], url: str | None, report: Report) -> list[Result]:
    """Compares the ops in order. url: None starts an executor, and another where one hangs."""
    results: list[Result] = []
    executor = EmbeddedExecutor("--threads", "1")
    try:
        rest = list(names)
        while rest:
            address = url or executor.start()
            done, hung = _run_child(address, rest[:PER_CHILD], report)
            results += done
            rest = rest[len(done) :]
            if hung:
                executor.stop()
            report.say(f"{len(results)} of {len(names)}, {sum(not r.passed for r in results)} fail")
    finally:
        executor.stop()
    return results


def _run_child(url: str, names: list[str], report: Report) -> tuple[list[Result], bool]:
    """What a child found until it ended, and whether the last op hung. At least one result."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "remora.bench.compat_child", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(names) + "\n")
    child.stdin.close()
    lines = _lines(child)
    results: list[Result] = []
    current, hung, wait_s = "", False, START_S
    try:
        while True:
            said = lines.get(timeout=wait_s)
            if said is None:
                break
            wait_s = OP_S
            if "begin" in said:
                current = said["begin"]
            elif "end" in said:
                current = ""
                results.append(Result(said["end"], said["compared"], said["failures"], said.get("blocks", 0)))
                for failure in said["failures"][:1]:
                    report.say(f"{said['end']}: {failure['kind']}: {failure['case']}: {failure['reason']}")
    except queue.Empty:
        hung = True
    finally:
        child.kill()
        code = child.wait()
    if current:
        reason = f"no end in {OP_S:.0f} s" if hung else f"the client process ended with {code}"
        kind = "hang" if hung else "crash"
        results.append(Result(current, 1, [{"kind": kind, "case": "client", "reason": reason}]))
        report.say(f"{current}: {kind}: {reason}")
    if not results:
        raise RuntimeError(f"the child that compares ops did not start: {_tail(child)}")
    return results, hung


def _lines(child: subprocess.Popen[str]) -> queue.Queue[Any]:
    """What the child says, parsed; None at its end."""
    said: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("compat "):
                said.put(json.loads(line.removeprefix("compat ")))
        said.put(None)

    def read_errors() -> None:
        assert child.stderr is not None
        child.said = "".join(list(child.stderr)[-20:])  # type: ignore[attr-defined]

    threading.Thread(target=read, daemon=True).start()
    threading.Thread(target=read_errors, daemon=True).start()
    return said


def _tail(child: Any) -> str:
    return str(getattr(child, "said", ""))[-1500:].strip()

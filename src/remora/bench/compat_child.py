"""`python -m remora.bench.compat_child URL`: compares the ops named on standard input, a JSON line each.

An op may end this process or never end: the parent sees the line that says which one was begun.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from typing import Any


def main(url: str) -> None:
    names = json.loads(sys.stdin.readline())
    warnings.simplefilter("ignore")
    import torch

    import remora
    from remora.bench.compat_compare import check, full_name, recover
    from remora.errors import SessionLost

    torch.set_num_threads(1)
    from torch.testing._internal.common_methods_invocations import op_db

    ops = {full_name(op): op for op in op_db}
    remora.connect(url)
    _say(ready=True)
    for name in names:
        _say(begin=name)
        before = remora.stats().round_trips
        try:
            verdict = check(ops[name])
            recover()
        except SessionLost as error:
            _say(end=name, compared=1, failures=[_crash(error)])
            sys.exit(3)
        except Exception as error:  # OpInfo's own code, outside of any comparison
            failure = {"kind": "error", "case": "bench", "reason": f"{type(error).__name__}: {error}"[:300]}
            _say(end=name, compared=1, failures=[failure])
            continue
        blocks = remora.stats().round_trips - before
        failures = [asdict(failure) for failure in verdict.failures]
        _say(end=name, compared=verdict.compared, failures=failures, blocks=blocks)
    remora.disconnect()


def _crash(error: Exception) -> dict[str, str]:
    text = " ".join(str(error).split())
    return {"kind": "crash", "case": "executor", "reason": text[:240]}


def _say(**content: Any) -> None:
    print("compat " + json.dumps(content), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

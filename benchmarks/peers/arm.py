"""One arm's client, in that arm's environment: `arm.py ARM PORT WORKLOAD UNITS`.

Prints `{}` when it is ready, then answers each line of its input with one trial: `{"seconds": …, "found": […]}`, or
`{"error": …}`. What libraries print goes to stderr.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable

import torch

WARM_UPS, MORE = 2, 2  # trials of every arm before it settles, and after
Program = Callable[[str, int], Callable[[], tuple[float, list[float]]]]
Answer = Callable[..., None]  # (program, settle): settle is called between the warm-ups


def local(port: int, answer: Answer) -> None:
    import programs

    answer(lambda workload, units: programs.program(workload, "cpu", units))


def remora(port: int, answer: Answer) -> None:
    import programs

    import remora as package

    package.connect(f"http://127.0.0.1:{port}")

    answer(
        lambda workload, units: programs.program(workload, "remora", units),
        lambda: package.wait_warm(60),  # calls that repeat are captured as a whole meanwhile
    )
    package.disconnect()


def skytorch(port: int, answer: Answer) -> None:
    import programs
    from skytorch.torch.server import Compute

    async def main() -> None:
        async with Compute(f"127.0.0.1:{port}") as compute:
            device = compute.device("cpu")
            answer(lambda workload, units: programs.program(workload, device, units))

    asyncio.run(main())


def mycelya(port: int, answer: Answer) -> None:
    import mycelya_link
    import programs

    device = mycelya_link.connect(port).device("cpu")
    answer(lambda workload, units: programs.program(workload, device, units))


def rpc(port: int, answer: Answer) -> None:
    import rpc_programs
    from torch.distributed import rpc as torch_rpc

    rpc_programs.join(rpc_programs.CLIENT, port)
    answer(rpc_programs.program)
    torch_rpc.shutdown()


ARMS = {one.__name__: one for one in (local, remora, skytorch, mycelya, rpc)}


def main() -> None:
    arm, port, workload, units = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)

    def say(what: object) -> None:
        print(json.dumps(what), file=out, flush=True)

    def answer(program: Program, settle: Callable[[], object] = lambda: None) -> None:
        trial = program(workload, int(units))
        for _ in range(WARM_UPS):
            trial()
        settle()
        for _ in range(MORE):
            trial()
        say({})
        for _ in sys.stdin:
            seconds, found = trial()
            say({"seconds": seconds, "found": found})

    try:
        ARMS[arm](int(port), answer)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"[:500]})
        raise


if __name__ == "__main__":
    main()

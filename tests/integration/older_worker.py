"""The worker as it would be on an older PyTorch: ops are missing, or have the schema that they had there.

REMORA_TEST_OLDER names a file {"torch": version, "missing": [op names], "schemas": {op name: schema}}. An op with
a schema of its own really is called by it: it is an op of the namespace `older` whose kernel calls today's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import torch

from remora.executor.hop import WorkerReady
from remora.executor.worker import __main__ as worker
from remora.executor.worker import program
from remora.ops.permission import op_table, table_digest
from remora.ops.schema import digest, resolve

OLDER = json.loads(Path(os.environ["REMORA_TEST_OLDER"]).read_text())
LIBRARY = torch.library.Library("older", "DEF")
changed = {}


def define(name: str, schema: str) -> None:
    today = resolve(name)
    LIBRARY.define(schema.replace("aten::", "", 1))
    arguments = torch._C.parse_schema(schema).arguments
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    base, _, overload = name.removeprefix("aten.").rpartition(".")

    def call(*args: object, **kwargs: object) -> object:
        given = dict(zip((argument.name for argument in arguments), args, strict=False))
        return today(**{**defaults, **given, **kwargs})

    LIBRARY.impl(base + ("" if overload == "default" else f".{overload}"), call, "CompositeExplicitAutograd")
    changed[name] = getattr(getattr(torch.ops.older, base), overload)


def resolve_older(name: str):
    if name in OLDER["missing"]:
        raise LookupError(f"torch {OLDER['torch']} has no op named {name!r}")
    return changed.get(name) or resolve(name)


ready_today = worker.ready


def ready(*told: Any) -> WorkerReady:
    today = ready_today(*told)
    ops = {name: digest(changed[name]) if name in changed else schema for name, schema in today.ops.items()}
    schemas = {**today.schemas, **OLDER["schemas"]}
    for name in OLDER["missing"]:
        ops.pop(name, None)
        schemas.pop(name, None)
    return msgspec.structs.replace(
        today, torch=OLDER["torch"], ops=ops, schemas=schemas, ops_digest=table_digest(ops)
    )


refusal = program.refusal
program.refusal = lambda op: None if op in changed.values() else refusal(op)
program.resolve = resolve_older
worker.ready = ready
for name, schema in OLDER["schemas"].items():
    if name in op_table():
        define(name, schema)
worker.main()

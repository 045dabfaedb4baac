"""`remora run --as-cuda`: code that says "cuda" gets remora."""

from __future__ import annotations


def as_cuda() -> None:
    raise NotImplementedError

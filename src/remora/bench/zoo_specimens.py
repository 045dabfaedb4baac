"""All specimens of the zoo, as far as the installed transformers has them."""

from __future__ import annotations

from functools import cache

from remora.bench.zoo_models import Specimen
from remora.bench.zoo_sense import SENSES
from remora.bench.zoo_text import TEXTS


@cache
def specimens() -> dict[str, Specimen]:
    """By name."""
    return {specimen.name: specimen for specimen in _ALL if _present(specimen)}


def absent() -> list[str]:
    """Names of those that this transformers does not have."""
    return [specimen.name for specimen in _ALL if not _present(specimen)]


def _present(specimen: Specimen) -> bool:
    import transformers

    return hasattr(transformers, specimen.model)


_ALL = (*TEXTS, *SENSES)

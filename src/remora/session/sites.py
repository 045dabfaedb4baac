"""Which site a segment runs at: the one whose last binding predicts it best, so that a repeated step sends nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from remora.wire.binding import Name, SiteMemory, count_changes

MAX_SITES_PER_TEMPLATE = 48  # more than the layers of most models, which may share a template


@dataclass
class KnownSite:
    """A site with the site that came after it last time, by template, and the names of its last run.

    fixed: slots that had the same name at the run before the site was made; to be guessed to stay.
    left: the values that its runs named have all ended, so there will be none like them. taken: it is for others in
    their place now, whose names are told in the way that theirs were.
    """

    index: int
    memory: SiteMemory
    names: list[Name] = field(default_factory=list)
    fixed: frozenset[int] = frozenset()
    followers: dict[int, KnownSite] = field(default_factory=dict)
    left: bool = False
    taken: bool = False


class Sites:
    """The sites of a session, as the client chooses them. Pure: the same calls give the same choices."""

    def __init__(self) -> None:
        self.count = 0
        self._by_template: dict[int, list[KnownSite]] = {}
        self._last: KnownSite | None = None
        self._named: dict[int, list[KnownSite]] = {}  # by segment, whose values they name

    def choose(self, template: int, segment: int, names: list[Name]) -> tuple[KnownSite, bool]:
        """The site for a run of `template`, and whether it is new."""
        known = self._by_template.setdefault(template, [])
        hint = self._last.followers.get(template) if self._last is not None else None
        site = self._best(known, hint, segment, names)
        new = site is None
        if site is None:
            site = KnownSite(self.count, SiteMemory(template))
            before = hint or (known[-1] if known else None)
            if before is not None:  # optimizer state was made by a run, and stays as weights do
                pairs = zip(before.names, names, strict=False)
                site.fixed = frozenset(slot for slot, (was, name) in enumerate(pairs) if was == name)
            self.count += 1
            known.append(site)
        if self._last is not None:
            self._last.followers[template] = site
        self._last = site
        site.names = names
        site.left, site.taken = False, site.left
        return site, new

    def told(self, site: KnownSite, slots: tuple[int, ...]) -> None:
        """What of a site's binding was told, as in a Run."""
        for relative, segment in zip(slots[1::5], slots[2::5], strict=True):
            if not relative:
                self._named.setdefault(segment, []).append(site)

    def freed(self, segments: Iterable[int]) -> None:
        """Values of these segments have ended."""
        for segment in segments:
            for site in self._named.pop(segment, ()):
                site.left = not any(
                    at in self._named for relative, at, _, _ in site.memory.slots if not relative
                )

    def _best(
        self, known: list[KnownSite], hint: KnownSite | None, segment: int, names: list[Name]
    ) -> KnownSite | None:
        few = len(names) // 4
        if hint is not None and count_changes(hint.memory, segment, names, few) <= few:
            return hint
        best, fewest = None, len(names) + 1
        for site in known:
            changes = count_changes(site.memory, segment, names, fewest)
            if changes < fewest:
                best, fewest = site, changes
                if not changes:
                    break
        if fewest <= few:
            return best
        left = [site for site in (hint, *known) if site is not None and site.left]
        if left:
            return min(left, key=lambda site: _unlike(site.memory, segment, names))
        return None if len(known) < MAX_SITES_PER_TEMPLATE else best


def _unlike(memory: SiteMemory, segment: int, names: list[Name]) -> int:
    """How many names would have to be told otherwise than as other values in the place of those of the last run."""
    if len(memory.slots) != len(names):
        return len(names) + 1
    return sum(
        (row, out) != name[1:] or (relative and segment - at != name[0])
        for (relative, at, row, out), name in zip(memory.slots, names, strict=True)
    )

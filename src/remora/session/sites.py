"""Which site a segment runs at: the one whose last binding predicts it best, so that a repeated step sends nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from remora.wire.binding import Name, SiteMemory, count_changes

MAX_SITES_PER_TEMPLATE = 48  # more than the layers of most models, which may share a template


@dataclass
class KnownSite:
    """A site with the site that came after it last time, by template, and the names of its last run.

    fixed: slots that had the same name at the run before the site was made; to be guessed to stay.
    """

    index: int
    memory: SiteMemory
    names: list[Name] = field(default_factory=list)
    fixed: frozenset[int] = frozenset()
    followers: dict[int, KnownSite] = field(default_factory=dict)


class Sites:
    """The sites of a session, as the client chooses them. Pure: the same calls give the same choices."""

    def __init__(self) -> None:
        self.count = 0
        self._by_template: dict[int, list[KnownSite]] = {}
        self._last: KnownSite | None = None

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
        return site, new

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
        if fewest > few and len(known) < MAX_SITES_PER_TEMPLATE:
            return None
        return best

"""Files that cannot be read: skipped, counted, named, and too many of them end the run."""

import logging
from collections.abc import Iterable
from math import sqrt

from data2vec.errors import RunStopped

log = logging.getLogger(__name__)


class BadExamples:
    """Counts distinct bad examples among `total`. One is always borne; beyond that at most `share` of all.

    Without a total it is that of the examples met so far. These are a sample, so three standard deviations more are borne:
    else a share just within the bounds would end the run sooner or later."""

    def __init__(self, share: float, total: int | None = None):
        self.share = share
        self.total = total or 0
        self.sampled = total is None
        self.names: dict[str, None] = {}

    def add(self, names: Iterable[str]) -> None:
        """Count and log those not seen before ("name: reason"). Raises RunStopped, naming some, when they are too many."""
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        self.names.update(dict.fromkeys(new))
        for name in new[:20]:
            log.warning("skipped: %s", name)
        if len(new) > 20:
            log.warning("skipped: %d more", len(new) - 20)
        expected = self.share * self.total
        allowed = max(1, int(expected + (3 * sqrt(expected) if self.sampled else 0))) if self.share > 0 else 0
        if len(self.names) > allowed:
            shown = "; ".join(list(self.names)[:3])
            more = f"; and {len(self.names) - 3} more" if len(self.names) > 3 else ""
            raise RunStopped(
                f"{len(self.names)} of {self.total} examples cannot be read, more than data.max_bad: {self.share:g} "
                f"allows: {shown}{more}. Mend or remove them, or raise data.max_bad"
            )

"""Files that cannot be read: skipped, counted, named, and too many of them end the run."""

import logging
from collections.abc import Iterable

from data2vec.errors import RunStopped

log = logging.getLogger(__name__)


class BadExamples:
    """Counts distinct bad examples among `total`. One is always borne; beyond that at most `share` of all."""

    def __init__(self, share: float, total: int = 0):
        self.share = share
        self.total = total
        self.names: dict[str, None] = {}

    def add(self, names: Iterable[str]) -> None:
        """Count and log those not seen before ("name: reason"). Raises RunStopped, naming some, when they are too many."""
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        self.names.update(dict.fromkeys(new))
        for name in new[:20]:
            log.warning("skipped: %s", name)
        if len(new) > 20:
            log.warning("skipped: %d more", len(new) - 20)
        allowed = max(1, int(self.share * self.total)) if self.share > 0 else 0
        if len(self.names) > allowed:
            shown = "; ".join(list(self.names)[:3])
            more = f"; and {len(self.names) - 3} more" if len(self.names) > 3 else ""
            raise RunStopped(
                f"{len(self.names)} of {self.total} examples cannot be read, more than data.max_bad: {self.share:g} "
                f"allows: {shown}{more}. Mend or remove them, or raise data.max_bad"
            )

"""Noticing that something was erased, by whichever process.

Whoever reads a session looks at its last row, which says so. Tails of subscriptions don't look:
their hub asks for new records now and then.
"""

from __future__ import annotations

import time
from typing import Final
from uuid import UUID

from eventlog.store import Store

LATE_SECONDS: Final = 30
"""How much later than its time says a record may become visible: longer than a statement lasts."""
SKEW_SECONDS: Final = 3_600
"""How far this machine's clock may be ahead of the database's, for the first look."""


class ErasureWatch:
    """Which erasures this process has taken note of."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._newest_us = (time.time_ns() // 1_000) - SKEW_SECONDS * 1_000_000
        self._noted: dict[UUID, int] = {}

    async def any_new(self) -> bool:
        """Whether an erasure ended since the last call. Raises `Unavailable`."""
        since = self._newest_us - LATE_SECONDS * 1_000_000
        found = dict(await self._store.erased_since(since))
        new = found.keys() - self._noted.keys()
        self._noted = found
        self._newest_us = max([self._newest_us, *found.values()])
        return bool(new)

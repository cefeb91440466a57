"""Logs whose sessions keep the newest two messages of a compaction, and nothing else."""

from __future__ import annotations

from typing import Final

import pytest

from eventlog import EventLog
from tests.conftest import OpenLog

KEEP_TWO: Final = (
    '{"messages_min": 0, "keep_messages": 2, "keep_tokens": null, "keep_user_tokens": 0}'
)


@pytest.fixture
async def short_log(open_log: OpenLog) -> EventLog:
    """A log on Postgres and Redis with that policy."""
    return await open_log(compaction=KEEP_TWO)

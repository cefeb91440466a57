"""Rows on their way into a table: one statement for many of them, given as columns.

The named queries that write views take an array for each column (`unnest`), so that a batch is a
handful of statements, however many sessions it touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

from eventlog.queries import query


async def write_rows(
    connection: asyncpg.Connection[Any], name: str, rows: Sequence[Sequence[Any]]
) -> None:
    """Run a named query with these rows; for none of them it is not run."""
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        await connection.execute(query(name), *columns)

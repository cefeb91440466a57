"""The tables of views inside one transaction: those served, or those built anew beside them.

The named queries that write views take an array for each column (`unnest`), so that a batch is a
handful of statements, however many sessions it touches. A rebuild writes the same rows by the same
queries into tables whose names end in `SUFFIX`, which nobody reads until they are switched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from eventlog.queries import query

SUFFIX: Final = "_next"
"""Ends the names of tables that are being built."""


class Tables:
    """Where a batch writes its views."""

    def __init__(self, connection: asyncpg.Connection[Any], suffix: str = "") -> None:
        self.connection = connection
        self._suffix = suffix

    async def write(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a named query with these rows as columns; for none of them it is not run."""
        if rows:
            columns = [list(column) for column in zip(*rows, strict=True)]
            await self.connection.execute(query(name, self._suffix), *columns)

    async def read(self, name: str, rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """Records of a named query that is given rows as columns."""
        if not rows:
            return []
        columns = [list(column) for column in zip(*rows, strict=True)]
        records: list[Sequence[Any]] = await self.connection.fetch(
            query(name, self._suffix), *columns
        )
        return records

    async def execute(self, name: str, *arguments: object) -> None:
        """Run a named query."""
        await self.connection.execute(query(name, self._suffix), *arguments)

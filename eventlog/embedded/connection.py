"""A client's connection to the supervisor: what keeps the servers running.

As long as it is open they run. The kernel closes it when the process ends, however it ends; leaving
politely only adds that the last one can wait until all data is safely on disk.
"""

from __future__ import annotations

import asyncio

from eventlog.embedded.messages import (
    LINE_BYTES_MAX,
    Leave,
    Left,
    Reply,
    Request,
    receive_reply,
    send,
)

LEAVE_SECONDS_MAX = 60.0
"""Longest wait of the last client for the servers to end; then it goes anyway."""


class Connection:
    """A connection to the supervisor; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, request: Request) -> Reply | None:
        """The answer; None when the supervisor is gone."""
        try:
            await send(self._writer, request)
        except ConnectionError:
            return None
        return await receive_reply(self._reader)

    async def unasked(self) -> Reply | None:
        """What it says by itself: that it is ending; None when it is gone."""
        return await receive_reply(self._reader)

    async def leave(self) -> None:
        """Say goodbye; as the last one, wait until the servers have ended. Closes it."""
        try:
            async with asyncio.timeout(LEAVE_SECONDS_MAX):
                if await self.ask(Leave()) == Left(stopping=True):
                    await self.unasked()
        except TimeoutError:
            return  # they end by themselves, only nobody waits for it
        finally:
            self.close()

    def close(self) -> None:
        self._writer.close()


async def connect(address: str | None) -> Connection | None:
    """A connection to this socket; None when nobody listens there."""
    if address is None:
        return None
    try:
        return Connection(*await asyncio.open_unix_connection(address, limit=LINE_BYTES_MAX))
    except (FileNotFoundError, ConnectionError):
        return None

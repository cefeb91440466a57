"""A TCP proxy in front of Postgres that loses answers: it cuts when the next reply comes back.

`cut_next_reply()` lets the next request through, waits for the server's answer to it, so that the
server has committed, and then breaks the connection instead of handing the answer on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit


class CuttingProxy:
    """Forwards to one server; `url` is where clients connect."""

    def __init__(self, server_url: str) -> None:
        self._target = urlsplit(server_url)
        self.cuts = 0
        """Answers that were lost."""
        self.url = ""
        self._armed: bytes | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def cut_next_reply(self, marker: bytes) -> None:
        """Lose the answer to the next request that contains `marker`."""
        self._armed = marker

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_connection(
            self._target.hostname, self._target.port
        )
        losing = asyncio.Event()

        async def forward_requests() -> None:
            while data := await reader.read(65536):
                if self._armed is not None and self._armed in data:
                    self._armed = None
                    losing.set()
                server_writer.write(data)
                await server_writer.drain()

        async def forward_answers() -> None:
            while data := await server_reader.read(65536):
                if losing.is_set():
                    self.cuts += 1
                    return
                writer.write(data)
                await writer.drain()

        ends = [asyncio.create_task(forward_requests()), asyncio.create_task(forward_answers())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            writer.transport.abort()
            server_writer.close()
            self._tasks.discard(task)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CuttingProxy]:
        """Listen as long as the block lasts."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = f"{self._target.username}@" if self._target.username else ""
        self.url = urlunsplit(self._target._replace(netloc=f"{user}127.0.0.1:{port}"))
        try:
            yield self
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

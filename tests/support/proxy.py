"""A proxy between a client and a server that misbehaves on demand, as networks do.

It forwards bytes between connections on a TCP port and the server's address, and can

- lose a reply: when a request that holds `marker` has been answered, the answer is seen here, and
  the connection is cut instead of forwarding it (`lose_replies`);
- cut every connection (`cut`), refuse new ones (`refuse`), and forward nothing (`stall`).

Everything is counted, so that a test can assert that the fault took place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

POSTGRES_READY: Final = b"Z\x00\x00\x00\x05I"
"""ReadyForQuery, outside of a transaction: what was asked is committed, or failed."""
CHUNK_BYTES: Final = 65_536


class Proxy:
    """One listening port in front of one server. Made by `proxy(url)`."""

    def __init__(self, url: str) -> None:
        self._target = _address(url)
        self._target_url = url
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._running = asyncio.Event()
        self._running.set()
        self.refusing = False
        self.marker = b""
        self.lose_count = 0
        """How many replies are still to be lost."""
        self.lost_count = 0
        self.accepted_count = 0

    @property
    def url(self) -> str:
        """The server's URL with the proxy's address in the place of the server's."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        parts = urlsplit(self._target_url)
        if parts.scheme == "unix":
            return f"redis://127.0.0.1:{port}/0"
        login = parts.netloc.rpartition("@")[0]
        netloc = f"{login}@127.0.0.1:{port}" if login else f"127.0.0.1:{port}"
        return urlunsplit((parts.scheme, netloc, parts.path, "", ""))

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def aclose(self) -> None:
        """Cut everything and stop listening."""
        assert self._server is not None
        self.stall(False)
        self._server.close()
        self.cut()
        await asyncio.gather(*(link.done.wait() for link in tuple(self._links)))

    # --- faults ---

    def lose_replies(self, count: int, *, marker: bytes) -> None:
        """Cut instead of forwarding the next `count` answers to requests that hold `marker`."""
        self.marker, self.lose_count = marker, count

    def cut(self) -> int:
        """Cut every connection; returns how many there were."""
        links = tuple(self._links)
        for link in links:
            link.cut()
        return len(links)

    def refuse(self, on: bool = True) -> None:
        """Close new connections at once; those that are open go on."""
        self.refusing = on

    def stall(self, on: bool = True) -> None:
        """Forward nothing, keeping connections open, until `stall(False)`."""
        if on:
            self._running.clear()
        else:
            self._running.set()

    # --- forwarding ---

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted_count += 1
        if self.refusing:
            writer.close()
            return
        try:
            host, port = self._target
            there = (
                await asyncio.open_unix_connection(host)
                if port is None
                else await asyncio.open_connection(host, port)
            )
        except OSError:
            writer.close()
            return
        link = _Link(self, (reader, writer), there)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    async def may_forward(self) -> None:
        """Waits while the proxy stalls."""
        await self._running.wait()


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._seen = b""
        self._losing = False
        self._answer = b""
        self.done = asyncio.Event()

    async def run(self) -> None:
        tasks = [asyncio.create_task(self._requests()), asyncio.create_task(self._answers())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.done.set()

    def cut(self) -> None:
        """Abort both sides: what is buffered is lost."""
        for _, writer in (self._client, self._server):
            with contextlib.suppress(RuntimeError):  # the loop is closing
                writer.transport.abort()

    async def _requests(self) -> None:
        reader, writer = self._client[0], self._server[1]
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._proxy.may_forward()
                self._watch(data)
                writer.write(data)
                await writer.drain()

    def _watch(self, data: bytes) -> None:
        marker = self._proxy.marker
        if not self._proxy.lose_count or not marker:
            return
        self._seen = self._seen[-len(marker) :] + data
        if marker in self._seen:
            self._seen = b""
            self._losing = True
            self._proxy.lose_count -= 1

    async def _answers(self) -> None:
        reader, writer = self._server[0], self._client[1]
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._proxy.may_forward()
                if self._losing:
                    self._answer = self._answer[-len(POSTGRES_READY) :] + data
                    if POSTGRES_READY in self._answer or data[:1] in b"+-:$*":
                        self._proxy.lost_count += 1
                        return
                    continue
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the Postgres or Redis at `url`; its own `url` leads through it."""
    made = Proxy(url)
    await made.start()
    try:
        yield made
    finally:
        await made.aclose()


def _address(url: str) -> tuple[str, int | None]:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return unquote(parts.path), None
    if folder := parse_qs(parts.query).get("host"):
        return f"{folder[0]}/.s.PGSQL.{parts.port or 5432}", None
    default = 6379 if parts.scheme.startswith("redis") else 5432
    return parts.hostname or "127.0.0.1", parts.port or default

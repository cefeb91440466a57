"""A proxy between a client and a server that misbehaves on demand, as networks do.

It forwards bytes between a TCP port of its own and the server's address, and can

- lose a reply: when the next request that holds a marker was answered, cut the connection instead
  of forwarding the answer, so that the server has done what the client doesn't know of;
- cut every connection, forward nothing for a while, refuse new connections.

It counts what it did, so that a test can assert that the fault took place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

POSTGRES_READY: Final = b"Z\x00\x00\x00\x05I"
"""ReadyForQuery outside of a transaction: what was asked is committed, or failed."""
CHUNK_BYTES: Final = 65_536


class Proxy:
    """One listening port in front of one server. Made by `proxy(url)`."""

    def __init__(self, url: str) -> None:
        self.target = _address(url)
        self.url = ""
        """The server's URL with the proxy's address in the place of the server's."""
        self.cuts = 0
        """Answers that were lost."""
        self.seen_count = 0
        """Requests forwarded that held the marker of `watch`."""
        self.accepted_count = 0
        self.running = asyncio.Event()
        self.running.set()
        self._server_url = url
        self._refusing = False
        self._watched = b""
        self._to_lose = b""
        self._links: set[_Link] = set()

    # --- faults ---

    def cut_next_reply(self, marker: bytes) -> None:
        """Lose the answer to the next request that holds `marker`."""
        self._to_lose = marker

    def watch(self, marker: bytes) -> None:
        """Count the next request that holds `marker` in `seen_count`, once it was passed on."""
        self._watched, self.seen_count = marker, 0

    def cut(self) -> int:
        """Cut every connection; returns how many there were."""
        links = tuple(self._links)
        for link in links:
            link.cut()
        return len(links)

    def refuse(self, on: bool = True) -> None:
        """Close new connections at once; those that are open go on."""
        self._refusing = on

    def stall(self, on: bool = True) -> None:
        """Forward nothing, keeping connections open, until `stall(False)`."""
        if on:
            self.running.clear()
        else:
            self.running.set()

    # --- serving ---

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one client's connection until one side ends it."""
        self.accepted_count += 1
        host, port = self.target
        try:
            if self._refusing:
                raise ConnectionRefusedError
            server = (
                await asyncio.open_unix_connection(host)
                if port is None
                else await asyncio.open_connection(host, port)
            )
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), server)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    def loses(self, window: bytes) -> bool:
        """Whether the answer to what passes now is to be lost."""
        if not self._to_lose or self._to_lose not in window:
            return False
        self._to_lose = b""
        return True

    def forwarded(self, window: bytes) -> None:
        """Count what has been passed on."""
        if self._watched and self._watched in window:
            self.seen_count += 1
            self._watched = b""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve as long as the block lasts."""
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        parts = urlsplit(self._server_url)
        if parts.scheme == "unix":
            self.url = f"redis://127.0.0.1:{port}/0"
        else:
            login = parts.netloc.rpartition("@")[0]
            netloc = f"{login}@127.0.0.1:{port}" if login else f"127.0.0.1:{port}"
            self.url = urlunsplit((parts.scheme, netloc, parts.path, "", ""))
        try:
            yield
        finally:
            server.close()
            self.stall(False)
            ending = [link.ended.wait() for link in self._links]
            self.cut()
            await asyncio.gather(*ending)


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        owner: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = owner
        self._client, self._server = client, server
        self._losing = False
        self.ended = asyncio.Event()

    async def run(self) -> None:
        tasks = [asyncio.create_task(self._requests()), asyncio.create_task(self._answers())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.ended.set()

    def cut(self) -> None:
        """Abort both sides. What the server's socket holds already, the server may still read."""
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _requests(self) -> None:
        reader, writer = self._client[0], self._server[1]
        window = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._proxy.running.wait()
                window = window[-200:] + data
                self._losing |= self._proxy.loses(window)  # before the server can answer
                writer.write(data)
                await writer.drain()
                self._proxy.forwarded(window)

    async def _answers(self) -> None:
        reader, writer = self._server[0], self._client[1]
        answer = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._proxy.running.wait()
                if self._losing:
                    answer = answer[-len(POSTGRES_READY) :] + data
                    if POSTGRES_READY in answer or data[:1] in b"+-:$*":  # of Redis
                        self._proxy.cuts += 1
                        return
                    continue
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the Postgres or Redis at `url`; its own `url` leads through it."""
    made = Proxy(url)
    async with made.listening():
        yield made


def _address(url: str) -> tuple[str, int | None]:
    """Host and port; for a socket its path, and None."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return unquote(parts.path), None
    if folder := parse_qs(parts.query).get("host"):
        return f"{folder[0]}/.s.PGSQL.{parts.port or 5432}", None
    default = 6379 if parts.scheme.startswith("redis") else 5432
    return parts.hostname or "127.0.0.1", parts.port or default

"""One connection to Redis that never repeats a command by itself.

redis-py's client retries ten times by default, and a reply lost after XADD would store an entry
twice; it also gives up on reads that are meant to block. So the library talks over single
connections: a command is sent once, a lost connection is an error (`RedisDown`), and the next call
connects again.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from eventlog.errors import EventLogError, InvalidSetting

CONNECT_SECONDS_MAX: Final = 3.0
CALL_SECONDS_MAX: Final = 5.0
"""A call that takes longer counts as lost."""


class RedisDown(EventLogError):
    """Redis can't be reached, is full, or answered an error; no event is lost by that."""


class RedisRefused(RedisDown):
    """Redis answered an error: the connection is there, the command was not carried out."""


class RedisLink:
    """A connection that is opened when first used and again after it was lost."""

    def __init__(self, url: str) -> None:
        try:
            self._pool = ConnectionPool.from_url(
                url,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                # Ours is the only deadline: with one of its own redis-py sends through
                # asyncio.wait_for, which loses a cancellation on Python 3.11.
                socket_timeout=None,
                socket_connect_timeout=CONNECT_SECONDS_MAX,
                max_connections=1,
            )
        except ValueError as error:
            raise InvalidSetting(f"EVENTLOG_REDIS_URL can't be used: {error}") from None
        self._connection: AbstractConnection | None = None
        self._lock = asyncio.Lock()
        self.connection_number = 0
        """How many connections were made: at another number, it may be another server."""

    async def call(self, *command: Any, seconds: float = CALL_SECONDS_MAX) -> Any:
        """Send one command and return its answer. Raises `RedisDown`."""
        return (await self.call_many([command], seconds=seconds))[0]

    async def call_many(
        self, commands: list[tuple[Any, ...]], *, seconds: float = CALL_SECONDS_MAX
    ) -> list[Any]:
        """Send commands together and return their answers in order. Raises `RedisDown`.

        All answers are read before the first error among them is raised.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(seconds):
                    connection = await self._connected()
                    await connection.send_packed_command(b"".join(map(_pack, commands)))
                    answers = []
                    failure: ResponseError | None = None
                    for _ in commands:
                        try:
                            answers.append(await connection.read_response(timeout=float("inf")))
                        except ResponseError as error:
                            failure = failure or error
                            answers.append(None)
            except (RedisError, OSError, TimeoutError, ValueError) as error:
                await self._drop()
                raise RedisDown(f"Redis: {type(error).__name__}: {error}") from error
            except asyncio.CancelledError:
                await self._drop()  # an answer may be on its way: it must not meet the next call
                raise
        if failure is not None:
            raise RedisRefused(f"Redis: {failure}") from failure
        return answers

    async def _connected(self) -> AbstractConnection:
        if self._connection is None:
            connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await connection.connect()  # type: ignore[no-untyped-call]
            self._connection = connection
            self.connection_number += 1
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close the connection."""
        async with self._lock:
            await self._drop()


def _pack(command: tuple[Any, ...]) -> bytes:
    """The command in Redis' protocol, as one piece (redis-py makes two of every argument)."""
    parts = [b"*%d\r\n" % len(command)]
    for each in command:
        data = each if isinstance(each, bytes) else str(each).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)

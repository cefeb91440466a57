"""A second process, so that subscribers and writers each have a core.

`second_process(opener, …)` starts a fresh interpreter, opens `opener(…)` there (an asynchronous
context manager, such as `follow.following_tokens`) and returns a `Remote` on which its coroutines
are called by name, one at a time. The process ends with the block, whatever happens in it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

Opener = Callable[..., AbstractAsyncContextManager[Any]]
CALL_TIMEOUT_SECONDS = 300
"""A call that takes longer fails the case: the second process is stuck, or what it waits for."""
END_TIMEOUT_SECONDS = 10


class Remote:
    """An object in the other process; `call` names one of its coroutines."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._one_at_a_time = asyncio.Lock()

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call it there and return its answer; an error there is a RuntimeError here."""
        async with self._one_at_a_time, asyncio.timeout(CALL_TIMEOUT_SECONDS):
            return await asyncio.to_thread(self._exchange, method, arguments)

    async def opened(self) -> None:
        """Return when the object is ready to be called."""
        async with self._one_at_a_time, asyncio.timeout(CALL_TIMEOUT_SECONDS):
            await asyncio.to_thread(self._receive)

    def _exchange(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self._connection.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            succeeded, answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("the second process ended unexpectedly") from None
        if not succeeded:
            raise RuntimeError(f"in the second process: {answer}")
        return answer


class Local:
    """The same calls on an object in this process."""

    def __init__(self, target: Any) -> None:
        self._target = target

    async def call(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._target, method)(*arguments)


@asynccontextmanager
async def second_process(opener: Opener, *arguments: Any, **keywords: Any) -> AsyncIterator[Remote]:
    """Open `opener(*arguments, **keywords)` in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_main, args=(theirs, opener, arguments, keywords), daemon=True)
    process.start()
    theirs.close()
    remote = Remote(ours)
    try:
        await remote.opened()
        yield remote
    finally:
        ours.close()
        await asyncio.to_thread(process.join, END_TIMEOUT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


@asynccontextmanager
async def same_process(opener: Opener, *arguments: Any, **keywords: Any) -> AsyncIterator[Local]:
    """Open it here, with the same interface."""
    async with opener(*arguments, **keywords) as target:
        yield Local(target)


# --- in the second process -----------------------------------------------------------------------


def _main(
    connection: Connection, opener: Opener, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    work = _serve(connection, opener, arguments, keywords)
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


async def _serve(
    connection: Connection, opener: Opener, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    """Answer calls until the other side hangs up."""
    try:
        async with opener(*arguments, **keywords) as target:
            connection.send((True, None))
            while True:
                try:
                    method, given = await asyncio.to_thread(connection.recv)
                except (EOFError, OSError):
                    return
                answer = await getattr(target, method)(*given)
                connection.send((True, answer))
    except BaseException as error:
        with suppress(OSError):
            connection.send((False, _told(error)))
        raise


def _told(error: BaseException) -> str:
    """The error in a line; of a group, its members."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_told(each) for each in error.exceptions)
    return f"{type(error).__name__}: {error}"

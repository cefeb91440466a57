"""Processes that an earlier run left behind in a server's data folder.

Whoever calls this holds the lock of the data folder, so no supervisor is alive. Its servers got a
signal when it died, but Postgres may still be writing its last checkpoint, or, when the
postmaster itself was killed, a backend may still be finishing. Nothing is started in the folder
before the last of them is gone: they are waited for. Only orphans, whose own main process is dead,
are killed when that takes too long; a server that goes on running is somebody's, and an error.

What counts is a living process whose working folder is the data folder. A number in a pid file
proves nothing: it may be a zombie's, or belong to something else by now. (One exception: root
without the right to look into other users' processes, in some containers, sees only a name.)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from eventlog.errors import ServerStartFailed

LEFTOVER_SECONDS_MAX = 20.0
"""So long a dying server may take to finish by itself."""
KILLED_SECONDS_MAX = 10.0
"""So long a killed process may take to vanish; then starting fails."""
POLL_SECONDS = 0.01


def processes_in(folder: Path, *, pid: int | None = None) -> list[int]:
    """Living processes that work in `folder` (absolute, without symbolic links).

    `pid`, from a pid file, is counted too when it can't be looked into but is a Postgres by name.
    Where there is no /proc: processes whose command line names the folder.
    """
    if sys.platform != "linux":
        return _processes_naming(folder)
    found = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _works_in(entry, folder)
    ]
    if pid is not None and pid not in found and _is_hidden_postgres(Path(f"/proc/{pid}")):
        found.append(pid)
    return found


def wait_until_free(folder: Path, *, pid: int | None = None, orphans: bool = False) -> None:
    """Return when no process works in `folder` any more; raises `ServerStartFailed`.

    `orphans`: the processes there have lost their main process, and may be killed.
    """
    if sys.platform != "linux" and not orphans:
        # Nothing told them that their supervisor died. Both servers take this as: end cleanly.
        signal_all(folder, signal.SIGINT)
    if _gone_within(folder, pid, LEFTOVER_SECONDS_MAX):
        return
    if orphans:
        signal_all(folder, signal.SIGKILL, pid=pid)
    if not _gone_within(folder, pid, KILLED_SECONDS_MAX if orphans else 0.0):
        raise ServerStartFailed(
            f"processes {processes_in(folder, pid=pid)} work in {folder} and don't end; "
            "was a server started there by hand? Stop them, then try again"
        )


def signal_all(folder: Path, number: signal.Signals, *, pid: int | None = None) -> None:
    """Send a signal to every process that works in `folder`."""
    for process in processes_in(folder, pid=pid):
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue  # it ended by itself meanwhile


def _gone_within(folder: Path, pid: int | None, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes_in(folder, pid=pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink() == folder
    except OSError:
        return False  # it ended, is a zombie, or is another user's


def _is_hidden_postgres(process: Path) -> bool:
    try:
        (process / "cwd").readlink()
    except PermissionError:
        # pid (command) STATE ...
        name, _, rest = (process / "stat").read_text(errors="replace").rpartition(")")
        return name.endswith("(postgres") and rest.split()[0] not in ("Z", "X")
    except OSError:
        return False
    return False


def _processes_naming(folder: Path) -> list[int]:
    listing = subprocess.run(
        ["/bin/ps", "-axo", "pid=,command="], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.strip().partition(" ") for line in listing.splitlines())
    return [
        int(number)
        for number, _, words in rows
        if str(folder) in words.split(" ") and int(number) != os.getpid()
    ]

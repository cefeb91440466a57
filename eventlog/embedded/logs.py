"""Log files of the supervisor and its servers: appended, bounded, quoted in errors.

The servers write to their files themselves (a pipe through the supervisor would let a stuck
supervisor stop Postgres). They append, so a file can be cut while they run: its end is copied to
`NAME.1` and the file is emptied. A line written in between may be lost; a log is not data.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

LOG_BYTES_MAX = 4 * 1024 * 1024
"""A log larger than this is cut; what was its end is kept in `NAME.1`."""
TAIL_LINES_MAX = 15
TAIL_BYTES_MAX = 4000
"""How much of a server's log an error message shows."""


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending, readable by its owner alone."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


def write_line(path: Path, text: str) -> None:
    """Append one line with the time in UTC."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    with open_log(path) as log:
        log.write(f"{now} {text}\n".encode(errors="backslashreplace"))


def cut_log(path: Path) -> None:
    """Bound the file; does nothing while it is short or missing."""
    size = log_size(path)
    if size <= LOG_BYTES_MAX:
        return
    with path.open("rb") as log:
        log.seek(size - LOG_BYTES_MAX // 2)
        end = log.read()
    with open_log(path.with_name(path.name + ".1")) as previous:
        previous.truncate(0)
        previous.write(end)
    os.truncate(path, 0)


def log_size(path: Path) -> int:
    """Bytes in the file, 0 when there is none: where the next line will be."""
    return path.stat().st_size if path.exists() else 0


def log_end(path: Path, *, since: int = 0) -> str:
    """The last lines written after byte `since`, indented for an error message."""
    if not path.exists():
        return "    (it wrote no log)"
    with path.open("rb") as log:
        log.seek(max(since, log_size(path) - TAIL_BYTES_MAX))
        lines = log.read(TAIL_BYTES_MAX).decode(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-TAIL_LINES_MAX:]) or "    (it wrote no log)"

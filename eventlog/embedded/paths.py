"""Where the files of one data folder are, and the proof that they are ours.

    DATA/                    the folder the user chose; made 0700 when it is missing
      supervisor.lock        locked by the living supervisor; holds its address (see `client.py`)
      supervisor.log  postgres.log  valkey.log
      postgres/  valkey/     the servers' own files, 0700
    TMP/eventlog-UID/        short, because a socket's path may have only about 100 bytes
      HASH OF DATA/          the sockets of the servers of this data folder

TMP is open to all users of the machine, so a folder found there is used only when it is a real
folder, belongs to us and nobody else may write in it. The hash covers the folder's device and
inode too: two containers that share TMP and call different folders `/data` do not meet.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

import msgspec

from eventlog.errors import ServerStartFailed

SOCKET_PATH_BYTES_MAX = 103
"""Longest path of a Unix socket that works everywhere (macOS; Linux takes 107)."""
LONGEST_SOCKET = "pg/.s.PGSQL.65535.lock"


class DataPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Every path that belongs to one data folder."""

    data: Path
    run: Path
    """Folder of the sockets, see above."""

    @property
    def lock(self) -> Path:
        return self.data / "supervisor.lock"

    @property
    def log(self) -> Path:
        return self.data / "supervisor.log"

    @property
    def control_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def postgres_data(self) -> Path:
        return self.data / "postgres"

    @property
    def postgres_log(self) -> Path:
        return self.data / "postgres.log"

    @property
    def postgres_sockets(self) -> Path:
        return self.run / "pg"

    @property
    def valkey_data(self) -> Path:
        return self.data / "valkey"

    @property
    def valkey_log(self) -> Path:
        return self.data / "valkey.log"

    @property
    def valkey_socket(self) -> Path:
        return self.run / "valkey.sock"


def data_paths(data: Path) -> DataPaths:
    """Make the data folder if it is missing and name its files; raises `ServerStartFailed`."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        resolved = data.resolve(strict=True)
        status = resolved.stat()
    except FileExistsError:
        raise ServerStartFailed(
            f"{data} is a file, not a folder; set EVENTLOG_DATA to a folder"
        ) from None
    except OSError as error:
        raise ServerStartFailed(
            f"the data folder {data} can't be made or opened ({error.strerror}); "
            "set EVENTLOG_DATA to a folder you may write in"
        ) from error
    effective = os.access in os.supports_effective_ids
    if not os.access(resolved, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective):
        raise ServerStartFailed(
            f"the data folder {resolved} is not writable for user {os.geteuid()}; "
            "set EVENTLOG_DATA to a folder you may write in"
        )
    identity = f"{resolved}\0{status.st_dev}:{status.st_ino}"
    name = hashlib.sha256(os.fsencode(identity)).hexdigest()[:12]
    return DataPaths(data=resolved, run=private_root() / name)


def private_root() -> Path:
    """`TMP/eventlog-UID`, made if missing; raises `ServerStartFailed` when it is not ours."""
    name = f"eventlog-{os.geteuid()}"
    temporary = Path(tempfile.gettempdir())
    longest = temporary / name / ("x" * 12) / LONGEST_SOCKET
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES_MAX:
        temporary = Path("/tmp")
    return private_folder(temporary / name)


def private_folder(folder: Path) -> Path:
    """Make `folder` with mode 0700, or check that what is there is a folder of ours alone."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise ServerStartFailed(
            f"the folder {folder} for sockets can't be made ({error.strerror}); "
            "set TMPDIR to a folder you may write in"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise ServerStartFailed(
            f"{folder} belongs to another user or is not a folder, so no socket is put there; "
            "have it removed, or set TMPDIR to another folder"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ServerStartFailed(
            f"others may write in {folder}, so no socket is put there; run: chmod 700 {folder}"
        )
    return folder

"""Root runs a Python script as another user of the machine.

    python as_user.py UID SCRIPT ARGUMENT...

Where that user can't walk to this interpreter (root's own, below a closed folder), it is mounted
at an open place first, in a mount namespace that only this process and its children see.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18


def main(user: int, command: list[str]) -> None:
    installed = Path(sys.base_prefix)
    python = Path(sys.executable)
    if not all(step.stat().st_mode & 0o001 for step in (installed, *installed.parents)):
        place = Path(tempfile.mkdtemp())
        place.chmod(0o755)
        mount(installed, place)
        python = place / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        os.environ["LD_LIBRARY_PATH"] = str(place / "lib")
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    os.execv(python, [str(python), *command])


def mount(source: Path, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    steps = (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None),
        lambda: libc.mount(
            os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(MS_BIND), None
        ),
    )
    for step in steps:
        if step() != 0:  # type: ignore[no-untyped-call]
            raise OSError(ctypes.get_errno(), f"can't mount {source} at {target}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

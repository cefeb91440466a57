"""Run a command as root of a place where user namespaces are forbidden, as in most containers.

    python without_namespaces.py PROGRAM ARGUMENT...

The place is itself a user namespace, with all users in it and a limit of no more namespaces. Its
maps must be written from outside: hence the second process.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
ALL_USERS = "0 0 4294967295"


def main(command: list[str]) -> int:
    inside, outside = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
            os._exit(1)
        os.write(inside[1], b"!")
        os.read(outside[0], 1)
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        os.execv(command[0], command)
    os.read(inside[0], 1)
    for users in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{users}").write_text(ALL_USERS)
    os.write(outside[1], b"!")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

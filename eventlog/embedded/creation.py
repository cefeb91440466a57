"""Make a Postgres data folder: initdb, and the database of the log.

It is made beside its place and renamed when it is complete and on disk, so what stands there is
never half-made; what an interrupted run left is thrown away. Sorting is by bytes everywhere, lower
and upper case are Unicode's own (built into Postgres, the same on every machine); only the classes
of characters that text search uses come from the system.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from eventlog.embedded import launch
from eventlog.embedded.identity import creating_identities, give_away, programs
from eventlog.embedded.leftovers import wait_until_free
from eventlog.embedded.logs import log_end, log_size, open_log
from eventlog.errors import ServerStartFailed

DATABASE = "eventlog"
OWNER = "postgres"
CREATE_SECONDS_MAX = 120.0
"""Longest run of one program; usually half a second."""
LOCALES = ("C.UTF-8", "en_US.UTF-8", "C")
"""Where the classes of characters come from: the first that the system has."""


def create_data(data: Path, *, log: Path, synced: bool) -> None:
    """Make the folder `data`, which is missing or empty; raises `ServerStartFailed`. Blocks.

    `synced=False` does not wait for the disk (tests).
    """
    fresh = data.with_name(f"{data.name}.new")
    wait_until_free(fresh, orphans=True)
    for identity in creating_identities():
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700)
        give_away(identity, fresh)
        if _fill(fresh, log, identity, synced):
            break
    else:
        raise ServerStartFailed(
            f"Postgres does not run as user {os.geteuid()}, and no other way works here: user "
            "namespaces are forbidden, and there is no user `nobody` to run as instead; start it "
            "as an ordinary user, or set EVENTLOG_POSTGRES_URL"
        )
    if data.exists():
        data.rmdir()
    fresh.rename(data)
    if synced:
        _sync_folder(data.parent)


def _fill(fresh: Path, log: Path, identity: str, synced: bool) -> bool:
    """Fill the folder; False when this identity is not possible here."""
    start = log_size(log)
    code = _initdb(fresh, log, identity, synced)
    if code == launch.NAMESPACE_FORBIDDEN:
        return False
    if code == 0:
        place = launch.seen_from_inside(fresh, identity)
        arguments = ["--single", *([] if synced else ["-F"]), "-D", place, "postgres"]
        make = f"create database {DATABASE};\n"
        code = _run("postgres", arguments, folder=fresh, identity=identity, log=log, stdin=make)
    output = log_end(log, since=start)
    if code != 0 or "ERROR:" in output:  # the single-user server goes on after an error
        raise ServerStartFailed(
            f"Postgres could not make the data folder {fresh} (code {code}); "
            f"{launch.HINTS.get(code, 'look for the reason')} in {log}:\n{output}"
        )
    return True


def _initdb(fresh: Path, log: Path, identity: str, synced: bool) -> int:
    place = launch.seen_from_inside(fresh, identity)
    arguments = ["-D", place, "-U", OWNER, "--auth-local=trust", "--auth-host=reject"]
    arguments += ["--encoding=UTF8", "--locale=C", "--no-instructions"]
    arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    arguments += [] if synced else ["--no-sync"]
    for locale in LOCALES:
        start = log_size(log)
        ours = [*arguments, f"--lc-ctype={locale}"]
        code = _run("initdb", ours, folder=fresh, identity=identity, log=log)
        if code != 1 or "invalid locale name" not in log_end(log, since=start):
            break
    return code


def _run(
    program: str, arguments: list[str], *, folder: Path, identity: str, log: Path, stdin: str = ""
) -> int:
    argv = launch.command(
        programs(identity) / program,
        *arguments,
        identity=identity,
        folder=folder,
        death_signal=signal.SIGTERM,
    )
    try:
        with open_log(log) as output:
            return subprocess.run(
                argv,
                input=stdin.encode(),
                stdout=output,
                stderr=output,
                timeout=CREATE_SECONDS_MAX,
                start_new_session=True,
                check=False,
            ).returncode
    except subprocess.TimeoutExpired as error:
        raise ServerStartFailed(
            f"{program} took longer than {CREATE_SECONDS_MAX:.0f} s to make {folder}; "
            "is the disk very slow? Try again, or set EVENTLOG_DATA to another folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

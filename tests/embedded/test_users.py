"""Who may start the servers: root, an ordinary user, one without a name, root in a container."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from eventlog.embedded import identity
from eventlog.embedded.leftovers import processes_in
from tests.embedded.processes import (
    HERE,
    NOBODY,
    Client,
    import_path,
    python_as,
    servers_running,
    until,
)

NAMELESS = 54321
"""A user number that is in no list of users."""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

StartClient = Callable[..., Client]


@pytest.fixture(scope="module")
def other_users() -> None:
    """Skip where another user can't run this project, e.g. because the checkout is closed."""
    probe = subprocess.run(
        [*python_as(NOBODY), "-c", "import eventlog.embedded"],
        env={**os.environ, "PYTHONPATH": import_path()},
        cwd="/",
        capture_output=True,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip(f"another user can't run this checkout: {probe.stderr.decode()[-200:]}")


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


async def ask_who(url: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("create table if not exists kept (answer int)")
        return await connection.fetchval("select current_user")
    finally:
        await connection.close()


async def test_postgres_runs_as_root_when_root_starts_it(
    new_data: Path, start_client: StartClient
) -> None:
    """Root's files stay root's, though Postgres sees another user; no other user is involved."""
    servers = start_client(new_data).servers()

    assert await ask_who(servers["postgres_url"]) == "postgres"
    assert (new_data / "postgres").stat().st_uid == 0
    assert {owner_of(pid) for pid in processes_in(new_data / "postgres")} == {0}


@pytest.mark.parametrize("user", [NOBODY, NAMELESS])
async def test_servers_run_when_an_ordinary_user_starts_them(
    open_folder: Path, other_users: None, start_client: StartClient, user: int
) -> None:
    """No right of root is needed, nor a name in the list of users."""
    data = open_folder / "data"
    os.chown(open_folder, user, user)

    client = start_client(data, command=python_as(user))
    servers = client.servers()
    assert "error" not in servers, servers
    assert await ask_who(servers["postgres_url"]) == "postgres"
    assert {owner_of(pid) for pid in servers_running(data)} == {user}
    client.leave()
    assert servers_running(data) == []


async def test_folder_is_refused_when_it_is_another_users(
    open_folder: Path, other_users: None, start_client: StartClient
) -> None:
    """A user does not get to start servers on root's data."""
    data = open_folder / "data"
    (data / "postgres").mkdir(parents=True)
    os.chown(data, NOBODY, NOBODY)

    client = start_client(data, command=python_as(NOBODY))

    assert "belongs to user 0" in client.servers()["error"]


async def test_postgres_runs_as_nobody_when_namespaces_are_forbidden(
    new_data: Path, start_client: StartClient
) -> None:
    """Where they are, root's Postgres runs as `nobody`, who can't even walk to its folder.

    Later, where they are allowed, the folder still runs as its owner.
    """
    forbidding = [sys.executable, str(HERE / "without_namespaces.py")]
    probe = subprocess.run([*forbidding, sys.executable, "-c", ""], check=False)
    if probe.returncode != 0:
        pytest.skip("no user namespace to forbid them in")

    client = start_client(new_data, command=[*forbidding, sys.executable])
    servers = client.servers()
    assert "error" not in servers, servers
    assert await ask_who(servers["postgres_url"]) == "postgres"
    assert (new_data / "postgres").stat().st_uid == NOBODY
    assert {owner_of(pid) for pid in processes_in(new_data / "postgres")} == {NOBODY}
    client.leave()
    await until(lambda: servers_running(new_data) == [])

    servers = start_client(new_data).servers()
    assert await ask_who(servers["postgres_url"]) == "postgres"
    assert {owner_of(pid) for pid in processes_in(new_data / "postgres")} == {NOBODY}


def test_programs_are_copied_when_another_user_cannot_reach_them(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nobody` can't walk to programs installed below root's home, so it gets readable ones."""
    monkeypatch.setattr(identity, "private_root", lambda: open_folder)
    monkeypatch.setattr(identity, "_open_to_all", lambda folder: False)

    folder = identity.programs(f"{NOBODY}:{NOBODY}")

    assert folder.is_relative_to(open_folder)
    assert identity.programs(f"{NOBODY}:{NOBODY}") == folder
    for program in ("initdb", "postgres"):
        version = subprocess.check_output([folder / program, "--version"], user=NOBODY, text=True)
        assert "(PostgreSQL) 18." in version


async def test_error_says_what_to_do_when_roots_folder_needs_a_namespace(
    data: Path, start_client: StartClient
) -> None:
    """Root's own data folder can't be run where namespaces are forbidden."""
    start_client(data).leave()
    assert (data / "postgres").stat().st_uid == 0
    forbidding = [sys.executable, str(HERE / "without_namespaces.py")]
    probe = subprocess.run([*forbidding, sys.executable, "-c", ""], check=False)
    if probe.returncode != 0:
        pytest.skip("no user namespace to forbid them in")

    client = start_client(data, command=[*forbidding, sys.executable])

    assert "chown -R nobody" in client.servers()["error"]

"""The private servers that the other tests of this project use, and hurt."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from eventlog.embedded import leftovers
from eventlog.embedded.leftovers import processes_in
from eventlog.embedded.postgres import Postgres
from eventlog.embedded.temporary import temporary_postgres, temporary_valkey
from eventlog.errors import ServerStartFailed
from tests.embedded.processes import ROOT, is_gone, until


async def fetch(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url, timeout=5)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def ask(url: str, *command: str) -> object:
    async with redis.asyncio.from_url(url, decode_responses=True) as client:
        answer: object = await client.execute_command(*command)  # type: ignore[no-untyped-call]
        return answer


@pytest.mark.parametrize("tcp", [False, True])
async def test_postgres_has_what_was_committed_when_killed_and_started(
    tmp_path: Path, tcp: bool
) -> None:
    """A killed Postgres loses all its processes and no commit; its address stays."""

    with temporary_postgres(tmp_path, tcp=tcp) as server:
        assert ("127.0.0.1" in server.url) is tcp
        url, pid = server.url, server.pid
        await fetch(url, "create table kept as select 42 as answer")
        server.kill()
        assert not server.is_running
        assert processes_in(server.data) == []
        with pytest.raises(OSError):
            await fetch(url, "select 1")

        server.start()
        assert (server.url, server.pid == pid) == (url, False)
        assert await fetch(url, "select answer from kept") == 42
        assert await fetch(url, "show fsync") == "on"
    assert processes_in(tmp_path / "postgres") == []


async def test_postgres_takes_other_settings_when_given(tmp_path: Path) -> None:
    """Tests of unsafe servers can have one."""

    with temporary_postgres(tmp_path, settings={"fsync": "off"}) as server:
        assert await fetch(server.url, "show fsync") == "off"


async def test_postgres_keeps_its_data_when_the_folder_is_used_again(tmp_path: Path) -> None:
    """The folder is the database: a second server on it goes on from there."""

    with temporary_postgres(tmp_path) as server:
        await fetch(server.url, "create table kept as select 42 as answer")
    with temporary_postgres(tmp_path) as server:
        assert await fetch(server.url, "select answer from kept") == 42


async def test_nobody_answers_when_postgres_is_paused(tmp_path: Path) -> None:
    """A paused server keeps connections open and silent; resumed, it answers."""

    with temporary_postgres(tmp_path) as server:
        connection = await asyncpg.connect(server.url)
        server.pause()
        with pytest.raises(TimeoutError):
            await asyncpg.connect(server.url, timeout=0.1)
        server.resume()
        assert await connection.fetchval("select 1") == 1
        await connection.close()
        server.pause()  # leaving the block must not wait for it


@pytest.mark.parametrize("tcp", [False, True])
async def test_valkey_keeps_or_loses_its_data_when_killed(tmp_path: Path, tcp: bool) -> None:
    """With `appendonly` a restart brings everything back, without it nothing."""

    for appendonly in (True, False):
        with temporary_valkey(tmp_path / str(appendonly), tcp=tcp, appendonly=appendonly) as server:
            await ask(server.url, "SET", "kept", "42")
            server.kill()
            with pytest.raises(redis.ConnectionError):
                await ask(server.url, "PING")
            server.start()
            assert await ask(server.url, "GET", "kept") == ("42" if appendonly else None)
            server.stop()
            server.start()
            assert await ask(server.url, "PING") is True


async def test_server_lives_on_when_the_thread_that_started_it_ends(tmp_path: Path) -> None:
    """The kernel ties a child to a thread; tests start servers from any."""

    with temporary_valkey(tmp_path) as server:
        server.kill()
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        assert await ask(server.url, "PING") is True
        assert server.is_running


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's help")
async def test_servers_die_when_the_test_process_is_killed(tmp_path: Path) -> None:
    """A test run that is killed leaves no servers behind."""
    script = (
        "import sys, pathlib, contextlib\n"
        "from eventlog.embedded.temporary import temporary_postgres, temporary_valkey\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with temporary_postgres(folder) as p, temporary_valkey(folder) as v:\n"
        "    print(p.url.partition('host=')[2], v.url.removeprefix('unix://'), p.pid, v.pid)\n"
        "    sys.stdout.flush()\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        *sockets, postgres, valkey = process.stdout.readline().split()
        process.kill()

    await until(lambda: is_gone(int(postgres)) and is_gone(int(valkey)))
    assert processes_in(tmp_path / "postgres") == []
    for path in sockets:
        shutil.rmtree(Path(path).parent)


async def test_orphans_are_killed_when_they_outlive_their_postmaster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend deep in a query does not notice; it must be gone before Postgres starts again."""
    monkeypatch.setattr(leftovers, "LEFTOVER_SECONDS_MAX", 0.1)

    with temporary_postgres(tmp_path) as server:
        connection = await asyncpg.connect(server.url)
        running = asyncio.Event()
        connection.add_log_listener(lambda *_: running.set())
        endless = asyncio.create_task(
            connection.execute(
                "do $$ begin raise notice 'running'; loop perform 1; end loop; end $$"
            )
        )
        backend = connection.get_server_pid()
        await running.wait()
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: processes_in(server.data) == [backend])

        server.start()
        assert is_gone(backend)
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await endless
        assert await fetch(server.url, "select 1") == 1


def test_folder_is_refused_when_somebody_runs_a_server_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was started by hand on the folder is neither killed nor joined."""
    monkeypatch.setattr(leftovers, "LEFTOVER_SECONDS_MAX", 0.1)

    with temporary_postgres(tmp_path) as server:
        second = Postgres(data=server.data, sockets=tmp_path / "pg", log=tmp_path / "second.log")
        with pytest.raises(ServerStartFailed, match="by hand"):
            second.prepare()
        assert server.is_running


def test_a_stopped_server_has_no_pid_when_asked(tmp_path: Path) -> None:
    """Misuse in a test is told, not ignored."""

    with temporary_valkey(tmp_path) as server:
        server.stop()
        for act in (server.kill, server.pause):
            with pytest.raises(RuntimeError, match="does not run"):
                act()

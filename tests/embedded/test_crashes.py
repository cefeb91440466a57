"""What survives the death of each process: client, supervisor, Postgres, Valkey."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eventlog.embedded import ServerStatus, keeper, open_servers, server_status
from eventlog.embedded.child import Child
from eventlog.embedded.keeper import Keeper
from eventlog.errors import ServerStartFailed
from eventlog.settings import Settings
from tests.embedded.processes import (
    Client,
    is_gone,
    servers_running,
    supervisor_pid,
    until,
    until_it_works,
)
from tests.embedded.test_open_servers import ask_redis, query

StartClient = Callable[..., Client]

pytestmark = pytest.mark.faults


async def status_when_up(settings: Settings, name: str) -> ServerStatus:
    """A server may answer a moment before its supervisor knows that it does."""

    async def look() -> ServerStatus:
        (status,) = [each for each in await server_status(settings) if each.name == name]
        if status.state != "up":
            raise ConnectionError(f"{name} is {status.state}")
        return status

    return await until_it_works(look)


async def kill(settings: Settings, name: str) -> None:
    """SIGKILL its main process."""
    pid = (await status_when_up(settings, name)).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def test_servers_stop_when_the_client_is_killed(
    data: Path, start_client: StartClient
) -> None:
    """The kernel closes a killed client's connection: nothing runs on without it."""
    client = start_client(data)
    client.servers()
    supervisor = supervisor_pid(data)

    client.kill()

    await until(lambda: is_gone(supervisor))
    assert servers_running(data) == []
    assert not (data / "postgres" / "postmaster.pid").exists(), "it did not end cleanly"


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's help")
async def test_nothing_is_orphaned_when_supervisor_and_client_are_killed(
    data: Path, start_client: StartClient
) -> None:
    """The servers die with their supervisor, and the next run has all data."""
    client = start_client(data)
    client.servers()
    async with open_servers(Settings(data=data)) as servers:
        await query(servers, "create table kept as select 42 as answer")
    await asyncio.to_thread(client.process.send_signal, signal.SIGSTOP)

    os.kill(supervisor_pid(data), signal.SIGKILL)
    client.kill()

    await until(lambda: servers_running(data) == [])
    async with open_servers(Settings(data=data)) as servers:
        assert await query(servers, "select answer from kept") == 42


async def test_next_run_waits_when_the_old_server_still_ends(data: Path) -> None:
    """A new supervisor takes the folder only after the last process of the killed one is gone."""

    async with open_servers(Settings(data=data)) as servers:
        await query(servers, "create table kept as select 42 as answer")
        os.kill(supervisor_pid(data), signal.SIGKILL)
        async with open_servers(Settings(data=data)) as again:
            assert await query(again, "select answer from kept") == 42


async def test_servers_come_back_when_the_supervisor_is_killed(data: Path) -> None:
    """An attached client starts another supervisor; addresses and data stay."""

    async with open_servers(Settings(data=data)) as servers:
        await query(servers, "create table kept as select 42 as answer")
        await ask_redis(servers, "SET", "kept", "42")
        killed = supervisor_pid(data)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: supervisor_pid(data) != killed)

        assert await until_it_works(lambda: query(servers, "select answer from kept")) == 42
        assert await until_it_works(lambda: ask_redis(servers, "GET", "kept")) == "42"
    await until(lambda: servers_running(data) == [])


async def test_servers_stay_down_when_the_supervisor_was_told_to_end(data: Path) -> None:
    """SIGTERM is an order: all servers end, and attached clients don't bring them back."""

    async with open_servers(Settings(data=data)) as servers:
        supervisor = supervisor_pid(data)
        os.kill(supervisor, signal.SIGTERM)
        await until(lambda: is_gone(supervisor))
        assert servers_running(data) == []
        with pytest.raises(OSError):
            await query(servers, "select 1")
    assert servers_running(data) == []


async def test_postgres_comes_back_when_its_postmaster_is_killed(data: Path) -> None:
    """The supervisor starts Postgres again, on all that was committed."""
    settings = Settings(data=data)

    async with open_servers(settings) as servers:
        await query(servers, "create table kept as select 42 as answer")
        for _ in range(3):
            await kill(settings, "postgres")
            assert await until_it_works(lambda: query(servers, "select answer from kept")) == 42
        assert (await status_when_up(settings, "postgres")).restarts == 3
        assert (await status_when_up(settings, "valkey")).restarts == 0


async def test_valkey_comes_back_when_it_is_killed(data: Path) -> None:
    """The supervisor starts Valkey again, on its file."""
    settings = Settings(data=data)

    async with open_servers(settings) as servers:
        await ask_redis(servers, "SET", "kept", "42")
        await kill(settings, "valkey")
        assert await until_it_works(lambda: ask_redis(servers, "GET", "kept")) == "42"


async def test_postgres_starts_when_its_pid_file_names_a_stranger(data: Path) -> None:
    """After a crash the number in the pid file may belong to another process, or to a zombie."""
    async with open_servers(Settings(data=data, redis_url="none")) as servers:
        await query(servers, "create table kept as select 42 as answer")
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    await until(lambda: is_gone(zombie.pid))

    for pid in (os.getppid(), zombie.pid):
        (data / "postgres" / "postmaster.pid").write_text(f"{pid}\n{data}/postgres\n")
        async with open_servers(Settings(data=data, redis_url="none")) as servers:
            assert await query(servers, "select answer from kept") == 42
    zombie.wait()


async def test_postgres_starts_when_making_its_folder_was_interrupted(new_data: Path) -> None:
    """A half-made data folder is made anew, never used."""
    half_made = new_data / "postgres.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")

    async with open_servers(Settings(data=new_data, redis_url="none")) as servers:
        assert await query(servers, "select 1") == 1
    assert not half_made.exists()


async def test_valkey_starts_empty_when_its_file_is_damaged(new_data: Path) -> None:
    """Redis may lose everything: a file it can't read is moved aside instead of an error."""
    settings = Settings(data=new_data, postgres_url="postgresql://db.example.net/log")
    async with open_servers(settings) as servers:
        await ask_redis(servers, "SET", "kept", "42")
    (log,) = (new_data / "valkey" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(b"not at all " + log.read_bytes())

    async with open_servers(settings) as servers:
        assert await ask_redis(servers, "DBSIZE") == 0
    assert (new_data / "valkey.unreadable" / "appendonlydir" / log.name).exists()


async def test_lock_file_is_not_believed_when_it_was_left_behind(data: Path) -> None:
    """Only the lock itself says that a supervisor lives, not what the file holds."""
    for content in ("", "{", f'{{"pid": {os.getpid()}, "socket": "/nowhere"}}'):
        (data / "supervisor.lock").write_text(content)
        async with open_servers(Settings(data=data, redis_url="none")) as servers:
            assert await query(servers, "select 1") == 1


class Mortal:
    """A server that dies as soon as it is ready."""

    name = "Mortal"
    url = origin = ""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.spawned = 0

    def prepare(self) -> None: ...

    def spawn(self) -> Child:
        self.spawned += 1
        return Child(name=self.name, argv=[sys.executable, "-c", ""], log=self.log)

    def wait_ready(self, child: Child) -> None: ...

    def recover(self, failure: ServerStartFailed) -> bool:
        return False

    def stop(self, child: Child) -> None:
        child.kill()


async def test_server_is_given_up_when_it_keeps_dying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restarts are bounded; asking again starts over."""
    monkeypatch.setattr(keeper, "PAUSE_SECONDS_FIRST", 0.001)
    monkeypatch.setattr(keeper, "RESTARTS_MAX", 3)
    server = Mortal(tmp_path)
    lines: list[str] = []
    kept = Keeper("valkey", server, lines.append)

    await kept.start()
    await until(lambda: kept.status.state == "failed")
    assert server.spawned == 1 + 3
    assert "given up" in lines[-1]

    await kept.start()
    assert server.spawned > 4
    await kept.stop()
    assert kept.status.state == "stopped"

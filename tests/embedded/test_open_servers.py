"""Where servers come from, how long they run, and that processes share them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from eventlog.embedded import (
    Servers,
    open_servers,
    server_status,
    start_redis,
    stop_redis,
)
from eventlog.errors import InvalidSetting, ServerStartFailed
from eventlog.settings import Settings
from tests.embedded.processes import Client, is_gone, servers_running, supervisor_pid, until

StartClient = Callable[..., Client]


async def query(servers: Servers, sql: str) -> object:
    connection = await asyncpg.connect(servers.postgres_url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def ask_redis(servers: Servers, *command: str) -> object:
    assert servers.redis_url is not None
    async with redis.asyncio.from_url(servers.redis_url, decode_responses=True) as client:
        answer: object = await client.execute_command(*command)  # type: ignore[no-untyped-call]
        return answer


async def test_both_servers_answer_when_nothing_is_set(new_data: Path) -> None:
    """Without any URL, Postgres 18 and Valkey run, durable and closed to the network."""

    async with open_servers(Settings(data=new_data)) as servers:
        assert servers.postgres_embedded and servers.redis_embedded
        assert str(await query(servers, "show server_version")).startswith("18.")
        assert await query(servers, "select current_database()") == "eventlog"
        assert await query(servers, "show listen_addresses") == ""
        for setting in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert await query(servers, f"show {setting}") == "on"
        assert await query(servers, "select lower('Ä') || count(*) from pg_database") == "ä4"
        assert await ask_redis(servers, "PING") is True
        assert await ask_redis(servers, "CONFIG", "GET", "port") == {"port": "0"}
        assert await ask_redis(servers, "CONFIG", "GET", "maxmemory-policy") == {
            "maxmemory-policy": "noeviction"
        }
        version = await query(servers, "select split_part(version(), ' ', 2)")
        assert f"Postgres {version} embedded" in servers.origin[0]
        assert str(new_data) in servers.origin[0] and "Valkey 9" in servers.origin[1]


async def test_folders_are_private_when_servers_run(new_data: Path) -> None:
    """Nobody else may walk to the new_data or the sockets: they need no password."""

    async with open_servers(Settings(data=new_data)) as servers:
        sockets = Path(servers.postgres_url.partition("host=")[2])
        for folder in (
            new_data,
            new_data / "postgres",
            new_data / "valkey",
            sockets,
            sockets.parent,
        ):
            assert folder.stat().st_mode & 0o077 == 0, folder
        assert len(str(sockets / ".s.PGSQL.5432")) < 100

    assert not sockets.exists()


async def test_data_is_kept_when_opened_again(data: Path) -> None:
    """What one run wrote, the next one reads, in both servers."""

    async with open_servers(Settings(data=data)) as servers:
        await query(servers, "create table kept as select 42 as answer")
        await ask_redis(servers, "SET", "kept", "42")
    async with open_servers(Settings(data=data)) as servers:
        assert await query(servers, "select answer from kept") == 42
        assert await ask_redis(servers, "GET", "kept") == "42"


async def test_nothing_runs_when_the_last_client_has_left(data: Path) -> None:
    """Leaving the block as the last one returns when the servers have ended."""

    async with open_servers(Settings(data=data)):
        supervisor = supervisor_pid(data)
        assert servers_running(data)

    assert servers_running(data) == []
    await until(lambda: is_gone(supervisor))
    with pytest.raises(ServerStartFailed, match="no embedded servers run"):
        await server_status(Settings(data=data))


@pytest.mark.parametrize("name", ['a b\'s "c", (d)', "ä€\n\\", "x" * 200])
async def test_servers_run_when_the_folder_has_an_odd_name(data: Path, name: str) -> None:
    """Neither spaces and quotes nor a path too long for a socket matter."""
    odd = data.with_name(name)
    data.rename(odd)

    async with open_servers(Settings(data=odd)) as servers:
        assert await query(servers, "select 1") == 1
        await ask_redis(servers, "SET", "kept", "42")
    assert list((odd / "valkey" / "appendonlydir").iterdir())
    assert servers_running(odd) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_supervisor_is_small_when_it_runs(data: Path) -> None:
    """It loads its own modules, not the whole library with its drivers: see start_supervisor.py."""

    async with open_servers(Settings(data=data, redis_url="none")):
        mapped = Path(f"/proc/{supervisor_pid(data)}/maps").read_text()
    assert "msgspec" in mapped
    assert "asyncpg" not in mapped


@pytest.mark.parametrize("first_leaves_first", [True, False])
async def test_servers_are_shared_when_two_processes_use_a_folder(
    data: Path, start_client: StartClient, first_leaves_first: bool
) -> None:
    """Two processes see the same servers, and whoever leaves first takes nothing away."""
    first = start_client(data)
    urls = first.servers()
    second = start_client(data)
    assert second.servers() == urls

    one, other = (first, second) if first_leaves_first else (second, first)
    one.leave()

    async with open_servers(Settings(data=data)) as servers:
        assert servers.postgres_url == urls["postgres_url"]
        assert await query(servers, "select 1") == 1
        assert await ask_redis(servers, "PING") is True
        other.leave()
        assert await query(servers, "select 1") == 1
    assert servers_running(data) == []


async def test_one_supervisor_runs_when_many_start_at_once(
    new_data: Path, start_client: StartClient
) -> None:
    """Commands that race for a new folder end up on the same servers."""

    all_in = asyncio.Event()

    async def use() -> tuple[str, str | None]:
        async with open_servers(Settings(data=new_data)) as servers:
            await query(servers, "select 1")
            await all_in.wait()
            return servers.postgres_url, servers.redis_url

    clients = [start_client(new_data) for _ in range(3)]
    users = [asyncio.create_task(use()) for _ in range(3)]
    others = [await asyncio.to_thread(client.servers) for client in clients]
    all_in.set()
    found = await asyncio.gather(*users)

    assert len({*found, *((other["postgres_url"], other["redis_url"]) for other in others)}) == 1
    assert (new_data / "supervisor.log").read_text().count("Postgres up") == 1


async def test_servers_work_when_opened_while_others_shut_down(data: Path) -> None:
    """A client that comes while the servers are ending waits and gets new ones."""

    async def use(times: int) -> None:
        for _ in range(times):
            async with open_servers(Settings(data=data)) as servers:
                assert await query(servers, "select 1") == 1

    await asyncio.gather(use(4), use(4), use(4))

    assert servers_running(data) == []


async def test_nothing_is_started_when_both_urls_are_set(new_data: Path) -> None:
    """URLs win: no process, no folder, and no password in what people are told."""
    settings = Settings(
        data=new_data,
        postgres_url="postgresql://ada:se%20cret@db.example.net:6000/log?sslmode=require",
        redis_url="redis://:secret@cache.example.net/3",
    )

    async with open_servers(settings) as servers:
        assert servers.postgres_url == settings.postgres_url
        assert servers.redis_url == settings.redis_url
        assert not servers.postgres_embedded and not servers.redis_embedded
        assert servers.origin == (
            "Postgres from EVENTLOG_POSTGRES_URL (db.example.net:6000/log)",
            "Redis from EVENTLOG_REDIS_URL (cache.example.net/3)",
        )

    assert not new_data.exists()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:secret@[::1]/log",
        "postgresql://ada:x/secret@db/log",
        "postgresql://ada:x?secret@db/log",
        "postgresql://ada:x#secret@db/log",
        "postgresql:///log?host=/run/pg&user=ada&password=secret",
        "postgresql:///log?password=s@secret",
    ],
)
async def test_password_is_not_told_when_the_url_is_odd(new_data: Path, url: str) -> None:
    """However the password is written, what people are told does not hold it."""

    async with open_servers(Settings(data=new_data, postgres_url=url, redis_url="none")) as servers:
        assert "secret" not in " ".join(servers.origin)


async def test_there_is_no_redis_when_it_is_none(data: Path) -> None:
    """`none` means none: Postgres alone is embedded."""

    async with open_servers(Settings(data=data, redis_url="none")) as servers:
        assert servers.redis_url is None
        assert not servers.redis_embedded
        assert await query(servers, "select 1") == 1
        assert [each.name for each in await server_status(Settings(data=data))] == ["postgres"]


async def test_only_redis_is_embedded_when_postgres_has_a_url(new_data: Path) -> None:
    """With one URL set, the other server is embedded, and can be joined by a third wish."""
    postgres_url = "postgresql://db.example.net/log"

    async with open_servers(Settings(data=new_data, postgres_url=postgres_url)) as servers:
        assert servers.postgres_url == postgres_url
        assert await ask_redis(servers, "PING") is True
        assert not (new_data / "postgres").exists()
        async with open_servers(Settings(data=new_data)) as both:
            assert both.redis_url == servers.redis_url
            assert await query(both, "select 1") == 1


async def test_redis_stays_away_when_it_was_stopped(data: Path) -> None:
    """Stopped on purpose, Valkey is not restarted, not even for newcomers, until it is started."""
    settings = Settings(data=data)

    async with open_servers(settings) as servers:
        await ask_redis(servers, "SET", "kept", "42")
        await stop_redis(settings)
        async with open_servers(settings):
            states = {each.name: each.state for each in await server_status(settings)}
        with pytest.raises(redis.ConnectionError):
            await ask_redis(servers, "PING")
        assert await query(servers, "select 1") == 1
        assert states == {"postgres": "up", "valkey": "stopped"}

        await start_redis(settings)
        await start_redis(settings)
        assert await ask_redis(servers, "GET", "kept") == "42"


async def test_stopping_redis_is_refused_when_it_is_not_ours(data: Path) -> None:
    """Only an embedded Valkey that runs can be stopped."""

    with pytest.raises(InvalidSetting, match="EVENTLOG_REDIS_URL"):
        await stop_redis(Settings(data=data, redis_url="redis://cache.example.net"))
    with pytest.raises(ServerStartFailed, match="no embedded servers run"):
        await stop_redis(Settings(data=data))
    async with open_servers(Settings(data=data, redis_url="none")):
        with pytest.raises(ServerStartFailed, match="valkey"):
            await stop_redis(Settings(data=data))


async def test_error_of_the_block_is_kept_when_it_fails(data: Path) -> None:
    """An exception inside the block comes out as it is, and the servers end."""

    with pytest.raises(LookupError, match="mine"):
        async with open_servers(Settings(data=data, redis_url="none")):
            raise LookupError("mine")

    assert servers_running(data) == []


async def test_servers_end_when_the_block_is_cancelled(data: Path) -> None:
    """Ctrl-C inside the block stops the servers too."""
    inside = asyncio.Event()

    async def use() -> None:
        async with open_servers(Settings(data=data, redis_url="none")):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert servers_running(data) == []

"""CPU seconds, of this process and of the servers that work for it.

Redis tells its own (`INFO cpu`). Postgres does not, so its processes are read from /proc: the
postmaster is the parent of our backend, and its children are told apart by their titles:

    ours        "postgres: ada bench_1f2e 127.0.0.1(4242) idle": our database is in the title
    shared      checkpointer, walwriter, background writer, autovacuum: counted, they work for us
    foreign     client backends of other databases: left out

A backend that ended is in the postmaster's sum of reaped children. That sum counts only while no
foreign session came or went (`pg_stat_database.sessions`), because it does not say whose it was.
Off Linux, or when the server is on another machine, the figure is None.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import redis.asyncio

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_CLIENT_BACKEND = re.compile(r"\(\d+\)|\[local\]")


@dataclass(frozen=True, slots=True)
class CpuReading:
    """Seconds used up to one moment; the difference of two is what was used between."""

    client: float
    redis: float | None
    postgres_alive: dict[int, float] | None
    postgres_reaped: float
    foreign_sessions: int


@dataclass(frozen=True, slots=True)
class CpuUsed:
    """Seconds used between two readings. `servers` is None when a server can't be measured."""

    client: float
    postgres: float | None
    redis: float | None

    @property
    def total(self) -> float | None:
        if self.postgres is None or self.redis is None:
            return None
        return self.client + self.postgres + self.redis


class CpuMeter:
    """Reads the CPU time of this process, of one database's Postgres and of one Redis."""

    def __init__(
        self, connection: asyncpg.Connection[Any], client: redis.asyncio.Redis, database: str
    ) -> None:
        self._connection = connection
        self._redis = client
        self._database = database
        self._postmaster: int | None = None

    async def start(self) -> None:
        """Find the server's main process, if it runs on this machine."""
        backend = await self._connection.fetchval("select pg_backend_pid()")
        stat = _stat(backend)
        if stat is not None and "postgres" in _title(backend):
            self._postmaster = stat.parent

    async def read(self, *, other_processes: float = 0.0) -> CpuReading:
        """A reading; `other_processes` are CPU seconds of a second process of ours."""
        sessions = await self._connection.fetchval(
            "select coalesce(sum(sessions), 0)::bigint from pg_stat_database "
            "where datname is distinct from $1",
            self._database,
        )
        info = await self._redis.info("cpu")
        redis_seconds = sum(
            float(info[f"used_cpu_{name}"])
            for name in ("user", "sys", "user_children", "sys_children")
        )
        alive, reaped = self._postgres()
        return CpuReading(
            time.process_time() + other_processes, redis_seconds, alive, reaped, sessions
        )

    def _postgres(self) -> tuple[dict[int, float] | None, float]:
        main = _stat(self._postmaster) if self._postmaster else None
        if main is None:
            return None, 0.0
        alive = {main.pid: main.own}
        for pid in _children(main.pid):
            stat, title = _stat(pid), _title(pid)
            foreign = _CLIENT_BACKEND.search(title) and f" {self._database} " not in title
            if stat is not None and not foreign:
                alive[pid] = stat.own
        return alive, main.reaped


def cpu_between(before: CpuReading, after: CpuReading) -> CpuUsed:
    """What client, Postgres and Redis used between two readings of one meter."""
    postgres = None
    if before.postgres_alive is not None and after.postgres_alive is not None:
        postgres = sum(
            seconds - before.postgres_alive.get(pid, 0.0)
            for pid, seconds in after.postgres_alive.items()
        )
        if before.foreign_sessions == after.foreign_sessions:
            ended = before.postgres_alive.keys() - after.postgres_alive.keys()
            counted = sum(before.postgres_alive[pid] for pid in ended)
            postgres += max(0.0, after.postgres_reaped - before.postgres_reaped - counted)
    redis_used = None
    if before.redis is not None and after.redis is not None:
        redis_used = after.redis - before.redis
    return CpuUsed(after.client - before.client, postgres, redis_used)


# --- /proc ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    parent: int
    own: float
    reaped: float


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    user, system, user_reaped, system_reaped = (int(field) for field in fields[11:15])
    return _Stat(
        pid,
        int(fields[1]),
        (user + system) / _TICKS_PER_SECOND,
        (user_reaped + system_reaped) / _TICKS_PER_SECOND,
    )


def _title(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []

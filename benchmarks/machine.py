"""What the figures were taken on: machine and versions, without names or addresses."""

from __future__ import annotations

import asyncio
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.servers import Place, redis_client

PACKAGES = ("conversation-eventlog", "asyncpg", "redis", "hiredis", "msgspec", "uvloop")
POSTGRES_SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "wal_compression",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
    "jit",
)
BUSY_CORES = 0.2
"""More than this used by other work, just before a case, will be in its figures."""


async def facts(place: Place) -> dict[str, Any]:
    """Everything a reader needs to judge the figures."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_gb": _memory_gb(),
            "system": f"{platform.system()} {platform.release()}",
            "load_before": load(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "servers": {"kind": place.kind, **await _postgres(place), **await _redis(place)},
    }


def describe(known: dict[str, Any]) -> str:
    """The facts in three lines."""
    machine, servers, versions = known["machine"], known["servers"], known["versions"]
    return "\n".join(
        (
            f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, "
            f"{machine['system']}, load {machine['load_before']}",
            f"Postgres {servers['postgres']}, Redis/Valkey {servers['redis']} ({servers['kind']})",
            ", ".join(f"{name} {number}" for name, number in versions.items() if number),
        )
    )


async def other_work_cores(seconds: float = 1.0) -> float | None:
    """Cores in use while nothing of ours runs: other work, which will be in the figures."""
    before = _busy_seconds()
    await asyncio.sleep(seconds)
    after = _busy_seconds()
    return None if before is None or after is None else round((after - before) / seconds, 2)


def _busy_seconds() -> float | None:
    """CPU seconds of the whole machine since it started, other than idle and waiting for disks."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def load() -> float:
    """Load average of the last minute."""
    return round(os.getloadavg()[0], 2)


async def _postgres(place: Place) -> dict[str, Any]:
    connection = await asyncpg.connect(place.postgres_url)
    try:
        rows = await connection.fetch(
            "select name, current_setting(name) as value from pg_settings where name = any($1)",
            list(POSTGRES_SETTINGS),
        )
        return {
            "postgres": str(await connection.fetchval("show server_version")).split(" ")[0],
            "postgres_settings": {row["name"]: row["value"] for row in rows},
        }
    finally:
        await connection.close()


async def _redis(place: Place) -> dict[str, Any]:
    client = redis_client(place.redis_url)
    try:
        info = await client.info("server")
    finally:
        await client.aclose()
    return {"redis": str(info.get("valkey_version") or info["redis_version"])}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gb() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

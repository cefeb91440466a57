"""Settings, read from the environment. The only module that looks at `os.environ`.

Every setting has the prefix `EVENTLOG_`; an empty value counts as not set. URLs win over embedded
servers: where `EVENTLOG_POSTGRES_URL` is set, no embedded Postgres is started, and likewise for
Redis. Nothing here connects to anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
import platformdirs

from eventlog.errors import InvalidSetting


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set from outside. Field `x_y` is the variable `EVENTLOG_X_Y`."""

    postgres_url: str | None = None
    """Postgres to use, e.g. `postgresql://user:password@host/database`. None: an embedded one."""
    postgres_admin_url: str | None = None
    """Owner's login for `eventlog migrate`; None: the same as `postgres_url`."""
    redis_url: str | None = None
    """Redis or Valkey to use. `none` means: run without Redis, subscriptions poll Postgres."""
    data: Path = msgspec.field(
        default_factory=lambda: Path(platformdirs.user_data_dir("eventlog", appauthor=False))
    )
    """Folder of the embedded servers' data, kept between runs."""
    tenant_id: int = 0
    """Tenant that this process reads and writes as."""
    shards: int = 16
    """Number of shards of a log that is created now (1 to 4,096); fixed for its life."""
    lanes: int = 1
    """Connections that commit appends side by side."""
    flush_seconds: float = 0.04
    """Longest time a token increment waits for others before its frame leaves."""
    append_timeout_seconds: float = 30.0
    """After this an append that could not be settled raises `OutcomeUnknown` or `Unavailable`."""
    event_bytes_max: int = 16 * 1024 * 1024
    """Largest stored payload of one event, in bytes."""
    feed_rows_max: int = 10_000
    """About how many rows each feed keeps in Redis."""
    cache_ttl_seconds: int = 3600
    """How long what is cached of a session lives in Redis after it was last written: its view with
    metadata and scratchpad, and, by itself, its context."""
    reply_idle_seconds: float = 300.0
    """After this silence the reaper closes a reply whose writer has died."""
    session_ttl_seconds: float | None = None
    """After this silence the expirer deletes a session that doesn't say its end; None: never."""
    erase_after_seconds: float | None = None
    """So long after it was deleted the expirer erases a session; None: never by itself."""
    metrics_port: int | None = None
    """Where workers and `eventlog up` serve metrics for Prometheus; 0: any free port; None: not."""
    metrics_host: str = "127.0.0.1"
    """Address that they listen on for it; metrics ask for no password."""
    compaction: str | None = None
    """The log's compaction policy, for sessions and users without one: `codex`, `module-9`, `off`,
    or a policy as JSON. None: what `CompactionPolicy()` says."""
    compaction_model: str = "gpt-5-mini"
    """Model that writes summaries; `none`: they are made of sentences of the conversation."""
    compaction_base_url: str | None = None
    """Its endpoint, any that is compatible with OpenAI's; None: `OPENAI_BASE_URL`, or OpenAI."""
    compaction_api: Literal["chat", "responses"] = "chat"
    """Which of OpenAI's two APIs the endpoint is asked through."""
    compaction_window_tokens: int | None = None
    """How much that model can read at once; None: what is known of it."""
    compaction_timeout_seconds: float = 120.0
    """Longest time for one answer of that model, from first byte to last."""
    compaction_at_once: int = 4
    """Sessions that one compact-worker works on side by side."""
    compaction_tokens_per_hour_max: int | None = None
    """Tokens that all compact-workers of the log may spend in an hour; None: no limit."""
    unsafe_durability: bool = False
    """Accept a server with `fsync`, `full_page_writes` or `synchronous_commit` off."""
    log_level: str = "info"
    """debug, info, warning or error."""


_RANGES: Final[dict[str, tuple[float, float]]] = {
    "tenant_id": (0, 2**31 - 1),
    "shards": (1, 4096),
    "lanes": (1, 64),
    "flush_seconds": (0, 60),
    "append_timeout_seconds": (0.1, 3600),
    "event_bytes_max": (1, 512 * 1024 * 1024),  # the longest string that Redis takes
    "feed_rows_max": (1, 10**9),
    "cache_ttl_seconds": (1, 10**9),
    "reply_idle_seconds": (0.1, 10**9),
    "session_ttl_seconds": (1, 10**10),
    "erase_after_seconds": (0, 10**10),
    "metrics_port": (0, 65_535),
    "compaction_window_tokens": (256, 10**9),
    "compaction_timeout_seconds": (0.1, 3600),
    "compaction_at_once": (1, 1_000),
    "compaction_tokens_per_hour_max": (0, 10**12),
}
"""Least and most that a number may be."""
_LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment (or from `environ`); raises `InvalidSetting`."""
    source = os.environ if environ is None else environ
    given = {
        field: value
        for field in Settings.__struct_fields__
        if (value := source.get(f"EVENTLOG_{field.upper()}", "").strip())
    }
    if "log_level" in given:
        given["log_level"] = given["log_level"].lower()
    try:
        settings = msgspec.convert(given, Settings, strict=False, dec_hook=_convert)
    except msgspec.ValidationError as error:
        raise InvalidSetting(f"environment: {error} (variables are EVENTLOG_<NAME>)") from None
    for field, (least, most) in _RANGES.items():
        value = getattr(settings, field)
        if value is not None and not least <= value <= most:  # false for nan, too
            name = f"EVENTLOG_{field.upper()}"
            raise InvalidSetting(f"{name} is {value}; it must be {least:,} to {most:,}")
    if settings.log_level not in _LOG_LEVELS:
        raise InvalidSetting(
            f"EVENTLOG_LOG_LEVEL is {settings.log_level!r}; it must be {', '.join(_LOG_LEVELS)}"
        )
    return settings


def read_model_key(environ: Mapping[str, str] | None = None) -> str | None:
    """The key for the model that writes summaries: EVENTLOG_COMPACTION_API_KEY or OPENAI_API_KEY.

    It is no field of `Settings`, so that nothing that shows settings shows it.
    """
    source = os.environ if environ is None else environ
    names = ("EVENTLOG_COMPACTION_API_KEY", "OPENAI_API_KEY")
    return next((key for name in names if (key := source.get(name, "").strip())), None)


def _convert(kind: type, value: object) -> object:
    if kind is Path:
        try:
            return Path(str(value)).expanduser()
        except RuntimeError as error:  # "~name" of nobody
            raise ValueError(f"{value}: {error}") from None
    raise NotImplementedError(f"no conversion to {kind}")

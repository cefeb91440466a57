"""What several commands take: a session, a point in time, JSON instead of a picture, a port."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, TypedDict

from cyclopts import Parameter

from eventlog import Settings
from eventlog.errors import InvalidRequest
from workers.terminal import make_console

SessionName = Annotated[str, Parameter(name="SESSION", help="Key or UUID of the session.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
At = Annotated[
    str | None,
    Parameter(
        name="--at",
        help="A seq, or a time in ISO 8601; without a zone it is local time.",
    ),
]
MetricsPort = Annotated[
    int | None,
    Parameter(
        name="--metrics-port",
        help="Serve metrics for Prometheus there, at /metrics; 0: any free port. "
        "Else EVENTLOG_METRICS_PORT.",
    ),
]
MetricsHost = Annotated[
    str | None,
    Parameter(
        name="--metrics-host",
        help="Address to serve metrics on; else EVENTLOG_METRICS_HOST, or 127.0.0.1.",
    ),
]
_SEQ_DIGITS_MAX: Final = 18
PORT_MAX: Final = 65_535


class MetricsPlace(TypedDict):
    """Where a command serves metrics; no port: it doesn't."""

    host: str
    port: int | None


def metrics_place(settings: Settings, host: str | None, port: int | None) -> MetricsPlace:
    """Where to serve metrics: what was said in the command comes before the settings."""
    if port is not None and not 0 <= port <= PORT_MAX:
        raise InvalidRequest(f"--metrics-port is {port}; it must be 0 to {PORT_MAX:,}")
    chosen = port if port is not None else settings.metrics_port
    return MetricsPlace(host=host or settings.metrics_host, port=chosen)


def parse_at(text: str | None) -> int | datetime | None:
    """A seq or an aware datetime from `--at`; says on stderr how a time without a zone was read."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) <= _SEQ_DIGITS_MAX:
        return int(text)
    at = _read_time(text, "--at")
    if at is None:
        raise InvalidRequest(
            f"--at {text!r:.60} is neither a seq nor a time; write 120, 2026-01-31T14:05 (local) "
            "or 2026-01-31T14:05:00Z"
        )
    return at


def parse_time(text: str | None, flag: str) -> datetime | None:
    """An aware datetime from a flag; says on stderr how a time without a zone was read."""
    if text is None:
        return None
    at = _read_time(text.strip(), flag)
    if at is None:
        raise InvalidRequest(
            f"{flag} {text!r:.60} is not a time; write 2026-01-31, 2026-01-31T14:05 (local) "
            "or 2026-01-31T14:05:00Z"
        )
    return at


def _read_time(text: str, flag: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            at = at.astimezone()
            make_console(stderr=True).print(
                f"{flag} {at.replace(tzinfo=None)} was taken as local time: {at.isoformat()}",
                style="dim",
            )
    except (ValueError, OverflowError, OSError):
        return None
    return at

"""What several commands take: a session, a point in time, JSON instead of a picture."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from cyclopts import Parameter

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
_SEQ_DIGITS_MAX: Final = 18


def parse_at(text: str | None) -> int | datetime | None:
    """A seq or an aware datetime from `--at`; says on stderr how a time without a zone was read."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) <= _SEQ_DIGITS_MAX:
        return int(text)
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is None:
            at = at.astimezone()
            make_console(stderr=True).print(
                f"--at {at.replace(tzinfo=None)} was taken as local time: {at.isoformat()}",
                style="dim",
            )
    except (ValueError, OverflowError, OSError):
        raise InvalidRequest(
            f"--at {text!r:.60} is neither a seq nor a time; write 120, 2026-01-31T14:05 (local) "
            "or 2026-01-31T14:05:00Z"
        ) from None
    return at

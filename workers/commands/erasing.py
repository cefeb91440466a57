"""`eventlog expire`, `erase` and `erasures`: when sessions end, and what removes their content."""

from __future__ import annotations

import getpass
import re
import sys
from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventlog import Erasure, EventLog, InvalidRequest, SessionNotFound
from eventlog.erasing import erasure
from eventlog.store import Head
from projections.checkpoint import postgres_of
from projections.heirs import settle_forks
from workers.commands import look
from workers.commands.arguments import AsJson, SessionName, parse_at
from workers.commands.opening import open_log
from workers.terminal import make_console, print_line, safe_json, safe_line

RECORDS_PER_PAGE: Final = 500
_SECONDS_OF: Final = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
_DURATION: Final = re.compile(r"(\d{1,9})\s*(s|m|min|h|d)")


async def expire(
    session: SessionName,
    /,
    *,
    after: Annotated[str | None, Parameter(help="Silence: 90s, 30m, 1h, 7d.")] = None,
    at: Annotated[str | None, Parameter(help="A time in ISO 8601; without a zone, local.")] = None,
    never: Annotated[bool, Parameter(help="It never expires, whatever the policy.")] = False,
) -> int:
    """Say when a session is to be deleted.

    An expirer must run for it: `eventlog up`, or `eventlog expire-worker`.

        eventlog expire chat-42 --after 30d
        eventlog expire chat-42 --at 2027-01-31T14:05Z
        eventlog expire chat-42 --never
    """
    if (after is not None) + (at is not None) + never != 1:
        raise InvalidRequest("say one of --after 1h, --at TIME, --never")
    point = parse_at(at)
    if at is not None and not isinstance(point, datetime):
        raise InvalidRequest(f"--at {at!r:.60} is not a time; write 2027-01-31T14:05Z")
    seconds = None if after is None else parse_duration(after)
    async with open_log() as log:
        handle = await log.session(session)
        await handle.expire(
            after_seconds=seconds, at=point if isinstance(point, datetime) else None
        )
    said = "never expires"
    if seconds is not None:
        said = f"expires after {_duration(seconds)} of silence"
    elif isinstance(point, datetime):
        said = f"expires at {point.isoformat()}"
    make_console().print(f"{safe_line(session)} {said}")
    return 0


def _duration(seconds: int) -> str:
    """The span in the largest unit that says it exactly: `7 d`, `36 h`, `90 s`."""
    for unit in ("d", "h", "min"):
        if seconds % _SECONDS_OF[unit] == 0:
            return f"{seconds // _SECONDS_OF[unit]:,} {unit}"
    return f"{seconds:,} s"


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `30m`, `1h`, `7d`."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise InvalidRequest(f"--after {text!r:.60} is no time span; write 90s, 30m, 1h or 7d")
    return int(found[1]) * _SECONDS_OF[found[2]]


async def erase(
    session: SessionName,
    /,
    *,
    forks: Annotated[bool, Parameter(help="Also every session that continues it.")] = False,
    yes: Annotated[bool, Parameter(help="Don't ask.")] = False,
    reason: Annotated[str | None, Parameter(help="Why; kept in the record.")] = None,
) -> int:
    """Delete a session and remove its content, for good.

    From the log, the views, snapshots, caches and search. Its events keep
    their numbers, times and kinds. Copies elsewhere (backups, replicas,
    exports) are yours to remove; disk space, and old row versions in
    Postgres' files, go with the next VACUUM.

        eventlog erase chat-42
        eventlog erase chat-42 --forks --yes --reason "request 17"
    """
    console = make_console()
    async with open_log() as log:
        session_id = log.session_id(session)
        head = await log.replayer.head(session_id)
        if head is None or await log.store.tenant_of(session_id) != log.store.tenant_id:
            raise SessionNotFound(session)
        family = await erasure.descendants(log, [session_id])
        if not yes:
            _tell(make_console(stderr=True), session, head, len(family), forks=forks)
            if not _confirmed(session):
                raise InvalidRequest("nothing was erased; say --yes to erase without being asked")
        by = getpass.getuser()
        done = await erasure.erase(log, session_id, reason=reason, forks=forks, requested_by=by)
        for record in done:
            await settle_forks(log, record)
        _report(console, log, session, done)
    return 0


def _tell(console: Console, session: str, head: Head, heirs: int, *, forks: bool) -> None:
    console.print(Text(f"{safe_line(session)}: {look.plural(head.seq, 'event')}", "bold"))
    if heirs:
        what = "erased as well" if forks else "keep what is their own (--forks erases them)"
        console.print(f"{look.plural(heirs, 'session')} forked from it: {what}")


def _confirmed(session: str) -> bool:
    if not sys.stdin.isatty():
        return False
    console = make_console(stderr=True)
    console.print(f"this can't be undone; type {safe_line(session)} to erase it: ", end="")
    return sys.stdin.readline().strip() in (session, "yes")


def _report(console: Console, log: EventLog, session: str, done: list[Erasure]) -> None:
    events, size = sum(each.events for each in done), sum(each.bytes for each in done)
    others = f" and {look.plural(len(done) - 1, 'fork')}" if len(done) > 1 else ""
    said = f"✓ {safe_line(session)}{others}: {look.plural(events, 'event')}, {size:,} bytes erased"
    console.print(Text(said, look.RIGHT), soft_wrap=True)
    if log.fanout is not None and any(each.redis_us is None for each in done):
        said = "  Redis did not answer: an expirer drops its copies (eventlog expire-worker)"
        console.print(Text(said, look.WRONG), soft_wrap=True)
    console.print(
        "  files of Postgres hold it until: vacuum eventlog.events, eventlog.message_views",
        style=look.QUIET,
        soft_wrap=True,
    )


async def erasures(*, as_json: AsJson = False) -> int:
    """List what was erased, oldest first.

    eventlog erasures
    eventlog erasures --json
    """
    found: list[Erasure] = []
    place = (0, UUID(int=0))
    async with open_log() as log:
        store = postgres_of(log)
        while page := await store.erasures(after=place, limit=RECORDS_PER_PAGE):
            found += page
            place = (page[-1].begun_us, page[-1].session_id)
    if as_json:
        print_line(safe_json([_as_dict(each) for each in found]))
        return 0
    console = make_console()
    if not found:
        console.print("nothing was erased")
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("session", "erased", "events", "bytes", "by", "reason", "left to do"):
        table.add_column(title, justify="right" if title in ("events", "bytes") else "left")
    for each in found:
        at = "under way" if each.erased_at is None else f"{each.erased_at:%Y-%m-%d %H:%M}Z"
        table.add_row(
            str(each.session_id),
            at,
            f"{each.events:,}",
            f"{each.bytes:,}",
            Text(safe_line(each.requested_by, 24)),
            Text(safe_line(each.reason or "", 40)),
            ", ".join(_left(each)),
        )
    console.print(table)
    return 0


def _left(each: Erasure) -> list[str]:
    left = {
        "rows": each.erased_us,
        "copies in Redis": each.redis_us,
        "views of forks": each.forks_us,
    }
    return [name for name, at in left.items() if at is None]


def _as_dict(each: Erasure) -> dict[str, object]:
    return {
        "session_id": each.session_id,
        "begun_at": each.begun_at,
        "erased_at": each.erased_at,
        "rows": each.rows,
        "events": each.events,
        "bytes": each.bytes,
        "reason": each.reason,
        "requested_by": each.requested_by,
        "left": _left(each),
    }

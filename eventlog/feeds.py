"""Feeds in Redis: their names, the runs of rows that are published to them, and where they end."""

from __future__ import annotations

import msgspec

from eventlog.envelope import Row, pack_row
from eventlog.errors import EventLogError
from eventlog.store import Answer, Command, Identity


class Keys(msgspec.Struct, frozen=True):
    """Names of everything in Redis. Log id and epoch keep a rewound log apart from its past."""

    prefix: str

    @staticmethod
    def of(identity: Identity) -> Keys:
        """The names for a log at its present epoch."""
        return Keys(f"eventlog:{identity.log_id.hex[:16]}:{identity.epoch}")

    def feed(self, shard: int) -> str:
        """The stream of a shard."""
        return f"{self.prefix}:{{{shard}}}:feed"

    def cache(self, shard: int, session: str, what: str) -> str:
        """A cached copy of something of a session."""
        return f"{self.prefix}:{{{shard}}}:{what}:{session}"


class Run:
    """Rows of one shard with consecutive positions."""

    __slots__ = ("byte_count", "first", "rows", "shard", "tried")

    def __init__(self, shard: int, first: int, rows: list[bytes]) -> None:
        self.shard = shard
        self.first = first
        self.rows = rows
        self.byte_count = sum(map(len, rows))
        self.tried = False


def packed_rows(command: Command, answer: Answer) -> list[bytes]:
    """The rows of an accepted command as the feeds hold them."""
    position, seq = answer.first_position, answer.before_seq
    packed: list[bytes] = []
    for draft in command.drafts:
        seq += draft.span
        packed.append(
            pack_row(
                Row(
                    position,
                    seq,
                    answer.recorded_us,
                    command.session_id,
                    draft.event_id,
                    draft.span,
                    draft.type,
                    draft.flags,
                    draft.data,
                )
            )
        )
        position += 1
    return packed


def last_position(newest: list[tuple[bytes, list[bytes]]]) -> int:
    """Position in the answer of `XREVRANGE … COUNT 1`; 0 for an empty feed."""
    if not newest:
        return 0
    try:
        return int(newest[0][0].split(b"-")[0])
    except (ValueError, IndexError) as error:
        raise EventLogError(f"a feed holds an entry that isn't ours: {newest!r}") from error

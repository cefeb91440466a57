"""The view of contexts: which sessions are due for compaction, or will be soon.

It is a projection of its own, with its own checkpoints and leases, so that counting tokens never
holds up the views that people look at. Its rows find work; whoever does it looks at the session's
newest state first. What a row says is found before the batch's transaction begins:

    fold ──> measure, as far as needed ──> transaction: move the checkpoint, write what was found

Counting a whole context for every message would cost the square of its length. So a session is
counted again only when it may have crossed a mark: half of its threshold, from where on it has a
row, and the threshold itself. Until then it is enough that a text has no more tokens than bytes.
After events that change a context in other ways (clears, rewinds, compactions, pinned facts, …),
and as long as the session is due, or held up, it is counted each time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from eventlog import events as ev
from eventlog.compaction.due import Due, is_due
from eventlog.compaction.measure import ContextTokens, context_tokens
from eventlog.compaction.policies import Policies
from eventlog.compaction.policy import CompactionPolicy
from eventlog.compaction.windows import window_of
from eventlog.envelope import Row, shard_of
from eventlog.errors import Unavailable
from eventlog.log import EventLog
from eventlog.replay import Replayer
from eventlog.state import SessionState
from projections.checkpoint import postgres_of
from projections.folding import Change, Folded, Folder, Poison
from projections.projection import Projection
from projections.tables import Tables

CONTEXTS: Final = "contexts"
"""Name of the projection, of its checkpoints and of its leases."""
ROW_SHARE: Final = 0.5
"""Of the threshold: smaller contexts have no row."""
SESSIONS_SEEN_MAX: Final = 20_000
"""Sessions whose size is remembered; others are counted when something happens in them."""
STATES_BYTES_MAX: Final = 128 * 1024 * 1024
"""Memory for states that are remembered between batches, about."""
MESSAGE_TOKENS_MAX: Final = 64
"""What a message, or a tool call in it, takes beside its text, at most."""

_HARMLESS: Final = (
    *(ev.SessionCreated, ev.SessionUpdated, ev.SessionExpirySet, ev.MessageStarted),
    *(ev.AgentActivated, ev.AgentHandedOff, ev.ScratchpadWritten, ev.Custom),
    *(ev.RunStarted, ev.RunFinished, ev.RunFailed, ev.RunStopRequested),
)
"""Events that no model reads anything of."""

_encode: Final = msgspec.json.Encoder().encode


class _Seen(msgspec.Struct):
    """What is remembered of a session."""

    seq: int
    tokens_most: int
    """Its context has no more."""
    model: str | None
    waits_for_mark: bool
    """It is under its threshold: nothing happens before it has grown."""
    has_row: bool
    found: tuple[Any, ...] | None = None
    """The row that `seq` demands, if another is demanded than is there."""
    drop: bool = False
    """No row is demanded any more."""


class ContextViews:
    """Writes what batches change of contexts. One object may serve any number of shards."""

    name = CONTEXTS
    version = 1

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._policies: dict[int, Policies] = {}
        self._seen: OrderedDict[UUID, _Seen] = OrderedDict()
        self._due: dict[UUID, int] = {}

    # --- measuring ---

    async def measure(self, change: Change) -> None:
        """Find out what a change means for its session. Raises `Unavailable`."""
        seen = self._seen.pop(change.session_id, None)
        if seen is not None and (change.before is None or change.before.seq != seen.seq):
            seen = None
        seen = await self._advanced(seen, change)
        if seen is None:
            return
        self._seen[change.session_id] = seen
        while len(self._seen) > SESSIONS_SEEN_MAX:
            self._seen.popitem(last=False)

    async def _advanced(self, seen: _Seen | None, change: Change) -> _Seen | None:
        """What is known of the session after a change; None: nothing, and it changes no row."""
        after = change.after
        if seen is not None:
            seen.seq, seen.found, seen.drop = after.seq, None, False
        if not change.events and not change.anew:
            return seen
        policy = await self._policy_of(change)
        if after.status != "open" or (not policy.enabled and after.compaction_asked is None):
            drop = seen is None or seen.has_row
            return _Seen(after.seq, 0, None, waits_for_mark=False, has_row=False, drop=drop)
        if seen is not None and _is_small(seen, change, policy):
            return seen
        await asyncio.sleep(0)  # counting takes milliseconds, and leases are to be renewed
        return self._counted(seen, change, policy)

    def _counted(self, seen: _Seen | None, change: Change, policy: CompactionPolicy) -> _Seen:
        after = change.after
        size = context_tokens(after)
        due = is_due(after, policy, size, now=datetime.now(UTC))
        has_row = due.due or due.at is not None or size.tokens >= due.threshold * ROW_SHARE
        return _Seen(
            seq=after.seq,
            tokens_most=max(size.tokens, size.counted),
            model=size.model,
            waits_for_mark=due.why == "under_threshold",
            has_row=has_row,
            found=(change.shard, change.session_id, change.tenant_id, *row_of(after, size, due))
            if has_row
            else None,
            drop=not has_row and (seen is None or seen.has_row),
        )

    async def _policy_of(self, change: Change) -> CompactionPolicy:
        policies = self._policies.get(change.tenant_id)
        if policies is None:
            policies = self._log.compaction.of_tenant(change.tenant_id)
            self._policies[change.tenant_id] = policies
        return await policies.of(change.after)

    def forget(self, shard: int) -> None:
        """Drop what is known of a shard: others may have gone on with it."""
        shards = self._log.store.shards
        for session_id in [each for each in self._seen if shard_of(each, shards) == shard]:
            del self._seen[session_id]

    # --- writing ---

    async def write(self, tables: Tables, changes: list[Change]) -> None:
        """Bring the rows of these sessions up to date, inside the caller's transaction."""
        rows: list[tuple[Any, ...]] = []
        dropped: list[tuple[int, UUID, int]] = []
        for change in changes:
            seen = self._seen.get(change.session_id)
            if change.anew or seen is None or seen.seq != change.after.seq:
                await self.measure(change)
                seen = self._seen.get(change.session_id)
            if seen is not None and seen.found is not None:
                rows.append(seen.found)
            elif seen is not None and seen.drop:
                dropped.append((change.shard, change.session_id, change.after.seq))
        await tables.write("drop_context_views", dropped)
        for session_id, tenant_id, is_due_now in await tables.read("write_context_views", rows):
            if is_due_now:
                self._due[session_id] = tenant_id

    async def remove(self, tables: Tables, shard: int, session_id: UUID) -> None:
        """Remove what the view has of a session."""
        await tables.execute("remove_context_view", shard, session_id)

    def take_due(self, session_ids: Iterable[UUID]) -> dict[UUID, int]:
        """Those of these sessions that have become due since they were asked for; their tenants."""
        found = {each: self._due.pop(each) for each in session_ids if each in self._due}
        if len(self._due) > SESSIONS_SEEN_MAX:  # of batches that came to nothing
            self._due.clear()
        return found


class ContextFolder(Folder):
    """Folds, and measures what it folded while no transaction waits for that."""

    def __init__(self, log: EventLog, views: ContextViews) -> None:
        store = postgres_of(log)
        replayer = Replayer(store, save_snapshots=False)  # the projector of the views saves them
        super().__init__(store, replayer, bytes_max=STATES_BYTES_MAX)
        self._views = views

    async def fold(self, shard: int, by_session: dict[UUID, list[Row]]) -> Folded:
        """Fold the rows of each session, and measure it. Raises `Unavailable`."""
        folded = await super().fold(shard, by_session)
        changes: list[Change] = []
        poisons = list(folded.poisons)
        for change in folded.changes:
            try:
                await self._views.measure(change)
            except Unavailable:
                raise
            except Exception as error:
                poisons.append(_poison(change, error))
            else:
                changes.append(change)
        return Folded(changes, poisons)

    def forget(self, shard: int) -> None:
        """Drop the states of a shard, and their sizes."""
        super().forget(shard)
        self._views.forget(shard)


def contexts_projection(log: EventLog, views: ContextViews) -> Projection:
    """The projection that keeps this view. Raises `InvalidSetting` for a log in memory."""
    return Projection(log, name=CONTEXTS, views=(views,), folder=ContextFolder(log, views))


def row_of(state: SessionState, size: ContextTokens, due: Due) -> tuple[Any, ...]:
    """Of a row: seq, tokens, threshold, is_full, why, due_at."""
    at = due.at
    if due.due:
        at = state.updated_at or datetime.now(UTC)
    at_us = None if at is None else round(at.timestamp() * 1_000_000)
    return (state.seq, size.tokens, due.threshold, due.full, due.why, at_us)


def _is_small(seen: _Seen, change: Change, policy: CompactionPolicy) -> bool:
    """Whether the session can't have crossed a mark. Takes account of the change in `seen`."""
    if not seen.waits_for_mark:
        return False
    for recorded in change.events:
        event = recorded.event
        match event:
            case ev.MessageAdded() | ev.MessageCompleted() | ev.MessageInterrupted():
                if not isinstance(event.content, str):
                    return False  # an image has more tokens than its address has bytes
                _grow(seen, event)
            case _ if not isinstance(event, _HARMLESS):
                return False
        if getattr(event, "model", None) not in (None, seen.model):
            return False  # another window, and another tokenizer
    threshold = policy.threshold(window_of(seen.model))
    return seen.tokens_most < (threshold if seen.has_row else threshold * ROW_SHARE)


def _grow(
    seen: _Seen, event: ev.MessageAdded | ev.MessageCompleted | ev.MessageInterrupted
) -> None:
    stated = 0
    if not isinstance(event, ev.MessageInterrupted):
        usage = event.usage
        if usage is not None:
            seen.tokens_most = max(seen.tokens_most, usage.input_tokens + usage.output_tokens)
        stated = max(0, event.token_count or 0)
    frames = MESSAGE_TOKENS_MAX * (1 + len(event.tool_calls))
    seen.tokens_most += max(len(_encode(event)), stated) + frames


def _poison(change: Change, error: Exception) -> Poison:
    return Poison(
        session_id=change.session_id,
        position=change.position,
        seq=change.after.seq,
        error=f"{type(error).__name__}: {error}",
    )

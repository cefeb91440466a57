"""Our own export: what goes out comes back, as recorded events and as a session to import."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from eventlog import events as ev
from eventlog.entries import Message
from eventlog.envelope import RecordedEvent
from eventlog.errors import InvalidRequest
from eventlog.integrations.export import (
    LEFT_OUT,
    OPEN_AT_EXPORT,
    export_jsonl,
    export_jsonl_stream,
    export_line,
    read_recorded,
)
from eventlog.integrations.transcripts import Transcript, event_id_of, read_transcript, resolve
from eventlog.log import EventLog
from eventlog.state import SessionState
from tests.factories import differences, framed, history, interruption, recorded, state_of
from tests.integrations.conftest import Write, folded, sample
from tests.strategies import histories

CREATED = ev.SessionCreated(key="chat-42", user_id="ada", title="Trip", metadata={"tier": 1})


def exported(events: Sequence[RecordedEvent], path: Path) -> Path:
    """The file with an export of the events."""
    path.write_bytes(b"".join(export_jsonl(events)))
    return path


def conversation(state: SessionState) -> dict[str, Any]:
    """What of a state doesn't depend on when and under which seqs it was recorded."""
    return {
        "messages": [portable(each) for each in state.messages],
        "context": state.context(),
        "compactions": [(each.summary, bool(each.reverted_seq)) for each in state.compactions],
        **{
            name: getattr(state, name)
            for name in (
                "title",
                "metadata",
                "message_count",
                "token_count",
                "context_token_count",
                "input_tokens",
                "output_tokens",
                "agents",
                "current_agent",
                "scratchpad",
                "runs",
            )
        },
    }


def portable(message: Message) -> dict[str, Any]:
    """A message without the seqs and times of one recording."""
    fields = msgspec.to_builtins(message)
    for name in ("seq", "closed_seq", "retracted_seq", "recorded_at"):
        fields.pop(name, None)
    return dict(fields)


def closed(events: list[RecordedEvent]) -> list[RecordedEvent]:
    """The history, with messages that still stream ended as an import ends them."""
    ends = [interruption(each, OPEN_AT_EXPORT) for each in state_of(events).open_messages]
    last = events[-1]
    return events + history(*ends, after=last.seq, session_id=last.session_id)


def test_line_when_exported_has_five_fields() -> None:
    """A line is the event as stored, and where it stands."""
    line = json.loads(export_line(recorded(7, ev.MessageAdded(role="user", content="é\u0000"))))

    assert line == {
        "seq": 7,
        "event_id": "c0c835b7-2e27-5f28-a7a7-7e4b3da8eb9f",
        "recorded_at": "2026-01-01T00:00:00.007000Z",
        "session_id": "018f0000-0000-7000-8000-000000000001",
        "event": {"type": "message.added", "role": "user", "content": "é\u0000"},
    }


@settings(deadline=None)
@given(events=histories(forks=True))
def test_export_when_read_as_recorded_is_what_went_out(
    events: list[RecordedEvent], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For every history: the same events, so the same fold, increments and forks included."""
    path = tmp_path_factory.mktemp("export") / "session.jsonl"
    again = list(read_recorded(exported(events, path)))

    assert again == events
    assert not differences(state_of(again), state_of(events))


@settings(deadline=None)
@given(
    events=histories(leave_out=("rewind",))
    | histories(leave_out=("compact", "revert"))
    | histories(leave_out=("write",))
)
def test_export_when_imported_is_the_same_conversation(
    events: list[RecordedEvent], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same messages, context and totals, under other seqs and ids, from rows or frames.

    What can't be told apart without increments is left out: a compaction that ends within a reply,
    behind the increment to which the session was rewound.
    """
    path = tmp_path_factory.mktemp("export") / "session.jsonl"
    expected = conversation(state_of(closed(events)))

    for form in (events, framed(events)):
        transcript = read_transcript(exported(form, path))
        assert conversation(folded(transcript)) == expected
        assert len({each.source_id for each in transcript.events}) == len(transcript.events)


def test_transcript_when_of_an_export_says_who_and_what(tmp_path: Path) -> None:
    """Key, user, title and metadata come from the first event; increments are left out."""
    events = history(
        CREATED,
        ev.MessageStarted(message_id="m1"),
        ev.TokenAppended(message_id="m1", text="Hel"),
        ev.TokenAppended(message_id="m1", text="lo"),
        ev.MessageCompleted(message_id="m1", content="Hello"),
    )
    transcript = read_transcript(exported(events, tmp_path / "x.jsonl"))

    assert (transcript.format, transcript.key, transcript.user_id) == ("eventlog", "chat-42", "ada")
    assert (transcript.title, transcript.user_metadata) == ("Trip", {"tier": 1})
    assert transcript.report.became == {
        "session.created": {"session": 1},
        "message.started": {"message.started": 1},
        "token.appended": {LEFT_OUT: 2},
        "message.completed": {"message.completed": 1},
    }
    assert [each.at for each in transcript.events] == [events[1].recorded_at, events[4].recorded_at]


def test_message_when_open_at_export_is_ended_with_its_text(tmp_path: Path) -> None:
    """Nobody will finish it in the new session: what was seen stays, and it is said."""
    events = history(
        CREATED,
        ev.MessageStarted(message_id="m1"),
        ev.TokenAppended(message_id="m1", text="Hel", channel="text"),
        ev.TokenAppended(message_id="m1", text="hm", channel="reasoning"),
        ev.TokenAppended(message_id="m1", text="{", channel="tool-arguments", tool_call_id="c"),
    )
    transcript = read_transcript(exported(events, tmp_path / "x.jsonl"))

    (message,) = folded(transcript).messages
    assert (message.status, message.content, message.reasoning) == ("interrupted", "Hel", "hm")
    assert message.tool_calls == [ev.ToolCall(id="c", name="", arguments="{")]
    assert [each.line for each in transcript.report.problems] == [2]


def test_fork_when_exported_goes_on_under_its_own_key(tmp_path: Path) -> None:
    """A fork's export has its parent's beginning: one session, named as the fork."""
    events = history(
        CREATED,
        ev.MessageAdded(role="user", content="Hi"),
        ev.SessionCreated(key="fork", title="Other", metadata={"tier": 2}, parent_seq=2),
        ev.MessageAdded(role="user", content="Ho"),
    )
    transcript = read_transcript(exported(events, tmp_path / "x.jsonl"))
    state = folded(transcript)

    assert (transcript.key, state.title, state.metadata) == ("fork", "Other", {"tier": 2})
    assert [each.content for each in state.messages] == ["Hi", "Ho"]


def test_line_when_it_is_no_event_is_kept_in_a_transcript(write: Write) -> None:
    """An import goes on behind a damaged line; reading the recorded events does not."""
    good = export_line(recorded(1, CREATED))
    bad = b'{"seq":2,"event_id":"x","event":{"type":"message.added"}}\n'
    last = export_line(recorded(3, ev.MessageAdded(role="user", content="Hi")))
    path = write(good, bad, b"{broken\n", last)

    transcript = read_transcript(path)
    assert [(each.line, each.what[:11]) for each in transcript.report.problems] == [
        (2, "not an expo"),
        (3, "broken JSON"),
    ]
    assert len(folded(transcript).messages) == 1
    with pytest.raises(InvalidRequest, match="line 2: not an exported event"):
        list(read_recorded(path))


def test_deletion_when_exported_does_not_delete_again(tmp_path: Path) -> None:
    """A session that was deleted can be imported: its tombstone is kept as a custom event."""
    events = history(CREATED, ev.MessageAdded(role="user", content="Hi"), ev.SessionDeleted())
    transcript = read_transcript(exported(events, tmp_path / "x.jsonl"))

    assert folded(transcript).status == "open"
    assert transcript.report.became["session.deleted"] == {"custom": 1}


async def test_session_when_exported_and_imported_has_the_same_context(tmp_path: Path) -> None:
    """All the way: import a transcript, stream to it, export it, import that, compare."""
    async with EventLog.in_memory() as log:
        first = await imported(log, read_transcript(sample("claude_compacted")), "first")
        async with first.reply(agent="planner") as reply:
            await reply.write("Well, ")
            await reply.write("done.")
        path = tmp_path / "session.jsonl"
        with path.open("wb") as file:
            async for line in export_jsonl_stream(first.read()):
                file.write(line)
        second = await imported(log, read_transcript(path), "second")

        assert await second.context() == await first.context()
        assert conversation(await second.replay()) == conversation(await first.replay())


async def imported(log: EventLog, transcript: Transcript, key: str) -> Any:
    """A session with the events of a transcript."""
    session = await log.create_session(
        key, title=transcript.title, metadata=transcript.user_metadata
    )
    first_id = event_id_of(session.id, transcript.events[0].source_id)
    await session.append(resolve(transcript, first_seq=2), event_id=first_id)
    return session


async def test_export_when_streamed_is_the_same_as_at_once() -> None:
    """An asynchronous source gives the same lines."""
    events = history(CREATED, ev.MessageAdded(role="user", content="Hi"))

    async def source() -> AsyncIterator[RecordedEvent]:
        for event in events:
            yield event

    assert [line async for line in export_jsonl_stream(source())] == list(export_jsonl(events))

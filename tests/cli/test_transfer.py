"""Transcripts in, JSON Lines out, and in again: nothing twice, nothing lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from eventlog import EventLog, MessageAdded, SessionState
from eventlog.integrations.transcripts import read_transcript
from tests.cli.command import CommandLine, sample

FILES = ["claude_clean.jsonl", "claude_compacted.jsonl", "codex_small.jsonl"]


@pytest.mark.parametrize("name", FILES)
async def test_import_when_repeated_adds_nothing(
    eventlog: CommandLine, opened: EventLog, key: str, name: str
) -> None:
    """The first import says what became of each line, the second that there is nothing new."""
    path = sample(name)
    events = read_transcript(path).events

    first = eventlog.run("import", str(path), "--key", key, "--user", "ada")
    session = await opened.session(key)
    head = await session.head()
    second = eventlog.run("import", str(path), "--key", key, "--user", "ada")

    assert f"{len(events)} events imported into session {key}" in first.stdout
    assert "message.added" in first.stdout
    assert head == 1 + len(events)
    assert f"nothing new: all {len(events)} events are in session {key}" in second.stdout
    assert await session.head() == head
    assert first.stderr == second.stderr == ""


@pytest.mark.parametrize("name", ["claude_clean.jsonl", "claude_compacted.jsonl"])
async def test_import_when_the_file_grows_adds_the_rest(
    eventlog: CommandLine, opened: EventLog, key: str, tmp_path: Path, name: str
) -> None:
    """A transcript of a session that goes on is imported again and again, cut in mid-message.

    The message at a fresh cut waits for the next import: it would not grow in the log.
    """
    lines = sample(name).read_bytes().splitlines(keepends=True)
    path = tmp_path / "growing.jsonl"
    said = []
    for length in (12, 27, 36, len(lines)):
        path.write_bytes(b"".join(lines[:length]))
        said.append(eventlog.run("import", str(path), "--key", key).stdout)
    os.utime(path, (0, 0))  # now it is at rest
    eventlog.run("import", str(path), "--key", key)
    eventlog.run("import", str(path), "--key", f"{key}-at-once")

    assert any("the last message was left out" in each for each in said)
    assert not any("changed in the file" in each for each in said)
    in_parts = await (await opened.session(key)).replay()
    at_once = await (await opened.session(f"{key}-at-once")).replay()
    assert portable(in_parts) == {**portable(at_once), "metadata": in_parts.metadata}


async def test_import_when_a_known_message_changed_keeps_the_first_and_says_so(
    eventlog: CommandLine, opened: EventLog, key: str, tmp_path: Path
) -> None:
    """What is stored stays; the report doesn't hide that the file says something else now."""
    path = tmp_path / "edited.jsonl"
    path.write_bytes(sample("claude_clean.jsonl").read_bytes())
    os.utime(path, (0, 0))
    eventlog.run("import", str(path), "--key", key)
    path.write_bytes(path.read_bytes().replace(b"ENT-98", b"ENT-99"))
    os.utime(path, (0, 0))

    said = eventlog.run("import", str(path), "--key", key).stdout

    assert "changed in the file since; the log keeps what was imported first" in said
    assert "ENT-98" in (await (await opened.session(key)).context())[3]["content"]


async def test_import_when_killed_halfway_goes_on_there(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """What an import that died had stored is not stored again."""
    from workers.commands.importing import batches, drafts_of

    transcript = read_transcript(sample("claude_clean.jsonl"))
    session = await opened.create_session(
        key=key, title=transcript.title, metadata=transcript.user_metadata
    )
    drafts = list(drafts_of(session, transcript))
    await session.append_drafts(drafts[:50], expected_seq=1)

    said = eventlog.run("import", str(sample("claude_clean.jsonl")), "--key", key).stdout

    assert f"{len(drafts) - 50} events imported into session {key} (50 were there)" in said
    assert await session.head() == 1 + len(drafts)
    assert [each.event_id async for each in session.read(after=1)] == [
        draft.event_id for draft in drafts
    ]
    assert [start for start, _ in batches(drafts, 50)] == [50]


async def test_import_when_the_session_holds_other_events_is_refused(
    eventlog: CommandLine, opened: EventLog, key: str
) -> None:
    """Events that aren't the file's stand where the file's would go; after all of them is fine."""
    session = await opened.create_session(key=key)
    await session.append(MessageAdded(role="user", content="mine"))
    path = str(sample("codex_small.jsonl"))

    refused = eventlog.run("import", path, "--key", key, code=2)
    eventlog.run("import", path, "--key", f"{key}-other")
    other = await opened.session(f"{key}-other")
    await other.append(MessageAdded(role="user", content="and on"))
    again = eventlog.run("import", path, "--key", f"{key}-other")

    assert "holds 1 events that are not from this file" in refused.stderr
    assert "nothing new" in again.stdout


@pytest.mark.parametrize("name", FILES)
async def test_export_when_imported_again_gives_the_same_conversation(
    eventlog: CommandLine, opened: EventLog, key: str, tmp_path: Path, name: str
) -> None:
    """Import, export, import under another key: the folds are equal."""
    output = tmp_path / "out.jsonl"
    eventlog.run("import", str(sample(name)), "--key", key, "--user", "ada")
    said = eventlog.run("export", key, "-o", str(output))
    eventlog.run("import", str(output), "--key", f"{key}-again")

    first = await (await opened.session(key)).replay()
    second = await (await opened.session(f"{key}-again")).replay()
    assert f"{first.seq} lines" in said.stderr
    assert portable(first) == portable(second)
    assert second.user_id == "ada"
    assert eventlog.run("export", key).stdout == output.read_text()


async def test_export_when_replies_were_streamed_comes_back_whole(
    eventlog: CommandLine, opened: EventLog, key: str, tmp_path: Path
) -> None:
    """Increments go out one by one or as frames, and leave the same messages when they come in."""
    session = await opened.create_session(key=key)
    await session.append(MessageAdded(role="user", content="Go."))
    async with session.reply(agent="a", model="m") as reply:
        for number in range(100):
            await reply.write(f"{number} ")
    fork = await session.fork(at=40, key=f"{key}-fork")
    await session.close()
    whole, frames, forked = (tmp_path / f"{name}.jsonl" for name in ("whole", "frames", "forked"))

    eventlog.run("export", key, "-o", str(whole))
    eventlog.run("export", key, "--frames", "-o", str(frames))
    eventlog.run("export", f"{key}-fork", "-o", str(forked))
    for path in (whole, frames, forked):
        eventlog.run("import", str(path), "--key", f"{key}-{path.stem}")

    assert len(whole.read_bytes().splitlines()) > 100
    assert len(frames.read_bytes().splitlines()) < 50
    assert all(json.loads(line)["event"]["type"] for line in frames.read_bytes().splitlines())
    for handle, name in ((session, "whole"), (session, "frames"), (fork, "forked")):
        copy = await (await opened.session(f"{key}-{name}")).replay()
        original = await handle.replay()
        assert [(each.content, each.status) for each in copy.messages] == [
            (each.content, each.status) for each in original.messages
        ]


async def test_import_when_a_fork_outlived_its_parent_keeps_the_closing(
    eventlog: CommandLine, opened: EventLog, key: str, tmp_path: Path
) -> None:
    """A closed parent's end in the history of a fork doesn't close the import."""
    session = await opened.create_session(key=key)
    await session.append(MessageAdded(role="user", content="before"))
    await session.close()
    fork = await session.fork(key=f"{key}-fork")
    await fork.append(MessageAdded(role="user", content="after"))
    path = tmp_path / "fork.jsonl"

    eventlog.run("export", f"{key}-fork", "-o", str(path))
    eventlog.run("import", str(path), "--key", f"{key}-copy")

    copy = await (await opened.session(f"{key}-copy")).replay()
    assert [each.content for each in copy.messages] == ["before", "after"]


def test_import_when_some_files_are_none_does_the_others(
    eventlog: CommandLine, key: str, tmp_path: Path
) -> None:
    """The bad ones are named, the good ones are in, and the exit code says it."""
    text = tmp_path / "notes \x1b[2J.txt"
    text.write_text("just notes")

    done = eventlog.run("import", str(text), str(sample("codex_small.jsonl")), code=1)

    assert "✗" in done.stdout
    assert "\x1b" not in done.stdout
    assert "00000000-0000-0000-0000-000000000001" in done.stdout
    assert "one file" in eventlog.run("import", "a", "b", "--key", key, code=2).stderr


def test_export_when_the_file_cannot_be_written_leaves_nothing(
    eventlog: CommandLine, key: str, tmp_path: Path
) -> None:
    """Exit code 1, one line; nothing half-written stays."""
    eventlog.run("append", key, "Hi", "--create")

    done = eventlog.run("export", key, "-o", str(tmp_path / "missing" / "out.jsonl"), code=1)

    assert "No such file or directory" in done.stderr
    assert list(tmp_path.iterdir()) == []


def portable(state: SessionState) -> dict[str, Any]:
    """What of a state must survive a journey: everything but times, and ids that were made up."""
    messages = [
        {name: getattr(each, name) for name in each.__struct_fields__ if name != "recorded_at"}
        for each in state.messages
    ]
    for message in messages:
        del message["message_id"]
    return {
        "messages": messages,
        "context": state.context(),
        "compactions": [replace(each, recorded_at=None) for each in state.compactions],
        "title": state.title,
        "metadata": state.metadata,
        "counts": (state.message_count, state.token_count, state.context_token_count),
        "agents": state.agents,
    }

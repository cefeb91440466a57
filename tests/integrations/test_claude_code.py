"""Claude Code transcripts: facts counted by hand in real sessions, and each rule on small files."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from eventlog.events import Custom, MessageAdded, SessionUpdated, ToolCall
from eventlog.integrations.transcripts import ImportedCompaction, Transcript, read_transcript
from tests.integrations.conftest import Write, folded, sample


def line(uuid: str, kind: str = "user", **fields: Any) -> dict[str, Any]:
    """A record as Claude Code writes it."""
    return {"type": kind, "uuid": uuid, "parentUuid": None, "sessionId": "s1", **fields}


def said(uuid: str, content: Any, **fields: Any) -> dict[str, Any]:
    """A `user` line."""
    return line(uuid, message={"role": "user", "content": content}, **fields)


def replied(uuid: str, message_id: str | None, *blocks: dict[str, Any], **more: Any) -> Any:
    """An `assistant` line; `more` are fields of its message."""
    message = {"role": "assistant", "id": message_id, "content": list(blocks), **more}
    return line(uuid, "assistant", message=message)


def text(words: str) -> dict[str, Any]:
    """A text block."""
    return {"type": "text", "text": words}


def call(call_id: str, name: str = "Bash") -> dict[str, Any]:
    """A block that calls a tool."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": {"command": "ls"}}


def result(call_id: str, content: Any = "ok", **fields: Any) -> dict[str, Any]:
    """A block with a tool's result."""
    return {"type": "tool_result", "tool_use_id": call_id, "content": content, **fields}


def messages(transcript: Transcript) -> list[MessageAdded]:
    """The messages of a transcript."""
    return [each.event for each in transcript.events if isinstance(each.event, MessageAdded)]


def problems(transcript: Transcript) -> list[tuple[int, str]]:
    """The problems of a transcript."""
    return [(each.line, each.what) for each in transcript.report.problems]


# --- real sessions -------------------------------------------------------------------------------


def test_real_session_when_folded_has_its_messages() -> None:
    """A session of 154 lines: 58 assistant lines are 22 replies, and its 31 calls are answered."""
    transcript = read_transcript(sample("claude_clean"))
    state = folded(transcript)

    assert Counter(each.role for each in state.messages) == {
        "tool": 31,
        "assistant": 22,
        "user": 10,
    }
    calls = [each.id for message in state.messages for each in message.tool_calls]
    results = [each.tool_call_id for each in state.messages if each.role == "tool"]
    assert len(calls) == 31 and sorted(calls) == sorted(str(each) for each in results)
    assert state.current_agent == "claude-code"
    assert problems(transcript) == []
    assert transcript.report.became["assistant"] == {"message.added": 58}
    assert transcript.report.became["progress"] == {"custom": 40}


def test_real_session_when_read_says_what_it_is() -> None:
    """Id, title, working directory, branch, version and model come from the file."""
    transcript = read_transcript(sample("claude_clean"))

    assert transcript.key == "8b418ea5-895d-4ad5-abe8-4489d36e454f"
    assert transcript.title == (
        "I'm working on linear ENT-98. keep our working documentation in linear."
    )
    assert transcript.user_metadata == {
        "source": "claude-code",
        "cwd": "/home/dev/workspace/cli",
        "git_branch": "main",
        "cli_version": "2.1.12",
        "model": "claude-opus-4-5-20251101",
    }


def test_real_reply_when_spread_over_lines_is_one_message() -> None:
    """Lines 17 to 21 are one reply: reasoning, text, three calls; its results follow it."""
    transcript = read_transcript(sample("claude_clean"))
    index = next(i for i, each in enumerate(transcript.events) if each.line == 17)
    event = transcript.events[index].event

    assert isinstance(event, MessageAdded) and isinstance(event.content, str)
    assert event.content.startswith("I'll work on ENT-98 - moving `help.go` back")
    assert event.reasoning.startswith("The issue is about moving")
    assert [each.name for each in event.tool_calls] == [
        "Glob",
        "Glob",
        "mcp__linear-server__list_documents",
    ]
    assert [each["uuid"][:6] for each in event.native] == [
        "920438",
        "159861",
        "0ef6a6",
        "cc8fd5",
        "9dadcd",
    ]
    assert transcript.events[index].at == datetime(2026, 1, 19, 2, 30, 32, 531000, tzinfo=UTC)
    roles = [each.role for each in messages(transcript)]
    place = messages(transcript).index(event)
    assert roles[place : place + 5] == ["assistant", "tool", "tool", "tool", "assistant"]


def test_real_compaction_when_folded_stands_for_what_was_before() -> None:
    """The context after the automatic compaction: its summary, then the 11 messages that follow."""
    transcript = read_transcript(sample("claude_compacted"))
    state = folded(transcript)
    (compaction,) = state.compactions

    assert (compaction.tokens_before, compaction.kept) == (155_250, [])
    assert (compaction.from_seq, compaction.to_seq) == (2, compaction.seq - 1)
    assert compaction.summary.startswith("This session is being continued from a previous")
    assert len(state.messages) == 28
    context = state.context()
    assert len(context) == 12 and compaction.summary in context[0]["content"]
    assert context[1]["role"] == "assistant"
    assert transcript.report.became["system/compact_boundary"] == {"compaction.completed": 1}
    assert transcript.report.became["user/compact_summary"] == {"compaction.completed": 1}
    assert problems(transcript) == [
        (1, "its parentUuid 200af16f-7e13-4822-870b-b5968ebdbd8b is not in the file")
    ]


def test_real_session_when_parents_are_missing_says_which() -> None:
    """Two lines name a parent that is not in the file; all 20 messages are there."""
    transcript = read_transcript(sample("claude_dangling_parent"))

    missing = "its parentUuid cdef98b0-b275-405a-96fa-2d3c86d07118 is not in the file"
    assert problems(transcript) == [(1, missing), (18, missing)]
    assert len(folded(transcript).messages) == 20
    assert transcript.report.became["summary"] == {"custom": 16}


def test_real_session_when_cut_in_a_turn_names_the_open_call() -> None:
    """The call that the file ends before the result of is reported, with its tool."""
    transcript = read_transcript(sample("claude_orphan_excerpt"))

    assert problems(transcript) == [
        (1, "its parentUuid af0a4073-966b-4ab6-8c96-c5624500625f is not in the file"),
        (8, "the call toolu_01DhgKyDEyRxfLPsX1zNKtXk of tool 'Task' has no result"),
    ]


def test_fixture_when_it_has_every_record_type_reads_each() -> None:
    """Every type becomes something; scrubbed ids don't join what doesn't belong together."""
    transcript = read_transcript(sample("claude_all_record_types"))
    became = transcript.report.became

    assert len(became) == 30
    assert became["user"] == {"message.added": 9} and became["assistant"] == {"message.added": 10}
    assert became["system/compact_boundary"] == {"compaction.completed": 1, "custom": 1}
    assert Counter(each.role for each in messages(transcript)) == {
        "assistant": 10,
        "user": 6,
        "tool": 3,
    }
    assert (51, "a compaction without its summary") in problems(transcript)
    assert (42, "the timestamp '[trimmed for fixture]' can't be read") in problems(transcript)
    assert transcript.title == "Stage0 small fixture"


def test_subagent_file_when_read_is_a_session_of_its_own() -> None:
    """A subagent's file names its session; the agent that speaks is the subagent."""
    transcript = read_transcript(sample("agent-a0ad4f44468bdf20d"))

    assert transcript.key == "agent-a0ad4f44468bdf20d"
    assert transcript.user_metadata["agent_id"] == "a0ad4f44468bdf20d"
    assert transcript.title == "Search the repo for TODO comments"
    assert folded(transcript).agents == ["general-purpose"]
    assert all(each.metadata["is_sidechain"] for each in messages(transcript))


# --- messages ------------------------------------------------------------------------------------


def test_reply_when_a_result_comes_between_its_lines_stays_before_it(write: Write) -> None:
    """A reply whose first call is answered before its second is written: calls, then results."""
    transcript = read_transcript(
        write(
            said("u1", "go"),
            replied("a1", "msg_1", text("Looking."), call("t1"), usage={"output_tokens": 1}),
            said("u2", [result("t1", "one")]),
            replied("a2", "msg_1", call("t2"), usage={"output_tokens": 30}, stop_reason="tool_use"),
            said("u3", [result("t2", "two")]),
        )
    )

    _, reply, first, second = messages(transcript)
    assert [each.id for each in reply.tool_calls] == ["t1", "t2"]
    assert reply.tool_calls[0] == ToolCall(id="t1", name="Bash", arguments='{"command":"ls"}')
    assert (reply.token_count, reply.finish_reason, reply.message_id) == (30, "tool_use", "msg_1")
    assert (first.content, first.tool_call_id, second.tool_call_id) == ("one", "t1", "t2")
    assert first.metadata["tool"] == "Bash"


def test_reply_when_lines_have_no_message_id_stay_apart(write: Write) -> None:
    """Without an id nothing says that two lines belong together."""
    transcript = read_transcript(
        write(replied("a1", None, text("one")), replied("a2", None, text("two")))
    )

    assert [each.content for each in messages(transcript)] == ["one", "two"]
    assert [each.message_id for each in messages(transcript)] == ["a1", "a2"]


def test_usage_when_stated_includes_the_cache(write: Write) -> None:
    """Tokens read from and written to the cache are input; the largest output count is the last."""
    stated = {
        "input_tokens": 3,
        "cache_creation_input_tokens": "40",
        "cache_read_input_tokens": 500,
        "output_tokens": 9,
    }
    transcript = read_transcript(
        write(
            replied("a1", "m", text("Hello."), usage=stated, model="claude-x"),
            replied("a2", "m", text("Bye."), usage={**stated, "output_tokens": 2}),
        )
    )

    (reply,) = messages(transcript)
    assert reply.usage is not None and reply.model == "claude-x"
    assert (reply.usage.input_tokens, reply.usage.cached_tokens) == (543, 500)
    assert (reply.usage.output_tokens, reply.token_count) == (9, 9)


def test_token_count_when_counted_at_the_beginning_is_left_out(write: Write) -> None:
    """One token can't be 400 characters: usage stays as stated, the message has no count."""
    transcript = read_transcript(
        write(replied("a1", "m", text("word " * 80), usage={"output_tokens": 1}))
    )

    (reply,) = messages(transcript)
    assert reply.usage is not None and reply.usage.output_tokens == 1
    assert reply.token_count is None


def test_user_line_when_it_has_several_results_is_several_messages(write: Write) -> None:
    """Each result is a message; text between them is one too; the record is kept once."""
    record = said(
        "u1",
        [
            result("t1", [text("a"), text("b")]),
            result("t2", "boom", is_error=True),
            text("and"),
            {"type": "image", "source": {"data": "…"}},
        ],
        toolUseResult={"stdout": "a"},
    )
    transcript = read_transcript(write(replied("a1", "m", call("t1"), call("t2")), record))

    _, one, two, rest = messages(transcript)
    assert (one.role, one.content) == ("tool", "a\nb")
    assert (two.role, two.content, two.metadata["is_error"]) == ("tool", "boom", True)
    assert rest.role == "user" and isinstance(rest.content, list)
    assert [each["type"] for each in rest.content] == ["text", "image"]
    assert (one.native, two.native) == ([record], [{"part_of": "u1"}])
    assert [one.message_id, two.message_id, rest.message_id] == ["u1", "u1#2", "u1#3"]
    assert transcript.report.became["user"] == {"message.added": 1}


def test_message_when_marked_carries_the_marks(write: Write) -> None:
    """Meta lines, sidechains and API errors are messages with flags in their metadata."""
    transcript = read_transcript(
        write(
            said("u1", "Caveat: …", isMeta=True),
            said("u2", "task", isSidechain=True, agentId="a7"),
            {**replied("a1", "m1", text("on it")), "isSidechain": True, "agentId": "a7"},
            {
                **replied("a2", "m2", text("API Error"), model="<synthetic>"),
                "isApiErrorMessage": True,
            },
        )
    )

    meta, task, side, error = messages(transcript)
    assert meta.metadata["is_meta"] is True
    assert (task.metadata["agent_id"], side.agent) == ("a7", "a7")
    assert (error.metadata["is_api_error"], error.model, error.agent) == (True, None, "claude-code")


def test_reply_when_it_has_unknown_blocks_keeps_them_as_parts(write: Write) -> None:
    """Content that is not only text stays a list of the provider's parts."""
    block = {"type": "server_tool_use", "id": "x", "name": "web_search"}
    transcript = read_transcript(write(replied("a1", "m", text("Searching."), block)))

    (reply,) = messages(transcript)
    assert reply.content == [text("Searching."), block]


def test_line_when_it_is_there_twice_is_one_message(write: Write) -> None:
    """The same line again (two files joined) is kept, but not as a second message."""
    record = said("u1", "hello")
    transcript = read_transcript(write(record, record))

    assert len(messages(transcript)) == 1
    assert problems(transcript) == [(2, "the same message as line 1")]
    assert transcript.events[1].event == Custom(name="claude_code.user", data=record)


# --- compactions ---------------------------------------------------------------------------------


def boundary(uuid: str, **metadata: Any) -> dict[str, Any]:
    """A compaction boundary."""
    return line(uuid, "system", subtype="compact_boundary", compactMetadata=metadata)


def test_compaction_when_messages_are_preserved_keeps_them(write: Write) -> None:
    """What the boundary lists by uuid stays in the context beside the summary."""
    preserved = {"preservedMessages": {"uuids": ["u2", "a2", "gone"]}, "postTokens": 9}
    transcript = read_transcript(
        write(
            said("u1", "first"),
            replied("a1", "m1", text("one")),
            said("u2", "second"),
            replied("a2", "m2", text("two")),
            boundary("b", preTokens="120", **preserved),
            line("p", "progress"),
            said("s", "What happened so far.", isCompactSummary=True),
            said("u3", "third"),
        )
    )

    (compaction,) = folded(transcript).compactions
    assert (compaction.tokens_before, compaction.tokens_after) == (120, 9)
    said_now = [each["content"] for each in folded(transcript).context()]
    assert said_now[:2] == ["second", "two"] and said_now[3] == "third"
    assert said_now[2].endswith("What happened so far.")
    assert problems(transcript) == [(7, "1 messages that it kept are not in the file")]


def test_compaction_when_a_segment_is_preserved_follows_its_chain(write: Write) -> None:
    """A preserved segment is named by its ends: the lines between are found by their parents."""
    transcript = read_transcript(
        write(
            said("u1", "first"),
            said("u2", "second", parentUuid="u1"),
            {**replied("a2", "m2", text("two")), "parentUuid": "u2"},
            boundary("b", preservedSegment={"headUuid": "u2", "tailUuid": "a2"}),
            said("s", "Summary.", isCompactSummary=True),
        )
    )

    event = transcript.events[3].event
    assert isinstance(event, ImportedCompaction)
    assert (event.covers_from, event.covers_to, event.kept) == (0, 2, [1, 2])


def test_compaction_when_its_summary_is_missing_changes_no_context(write: Write) -> None:
    """A boundary alone is kept as it is and reported: nothing leaves the context for nothing."""
    transcript = read_transcript(write(said("u1", "first"), boundary("b"), said("u2", "second")))

    assert len(folded(transcript).context()) == 2
    assert problems(transcript) == [(2, "a compaction without its summary")]


def test_compaction_when_the_file_begins_with_it_is_one(write: Write) -> None:
    """A continued session can begin with a summary: it stands first in the context."""
    transcript = read_transcript(
        write(said("s", "Before.", isCompactSummary=True), said("u1", "go on"))
    )

    context = folded(transcript).context()
    assert context[0]["content"].endswith("Before.") and context[1]["content"] == "go on"
    assert problems(transcript) == [(1, "a summary without a compaction boundary before it")]


# --- titles --------------------------------------------------------------------------------------


def titled(*records: dict[str, Any]) -> list[dict[str, Any]]:
    """A small session with titles."""
    return [said("u0", "<command-name>/mcp</command-name>"), said("u1", "Fix it"), *records]


def test_title_when_a_summary_is_of_another_session_is_the_prompt(write: Write) -> None:
    """Summaries of other sessions found in a file don't name this one."""
    summary = {"type": "summary", "summary": "Elsewhere", "leafUuid": "unknown"}

    assert read_transcript(write(*titled(summary))).title == "Fix it"
    assert read_transcript(write(summary)).title == "Elsewhere"


def test_title_when_a_summary_is_of_this_session_is_the_summary(write: Write) -> None:
    """The line that a summary names may come behind it."""
    summary = {"type": "summary", "summary": "Fixing it", "leafUuid": "u1"}
    transcript = read_transcript(write(summary, *titled()))

    assert transcript.title == folded(transcript).title == "Fixing it"
    assert transcript.report.became["summary"] == {"session.updated": 1}


def test_title_when_a_person_gave_one_stays(write: Write) -> None:
    """A person's title outranks one that a model gave, before or after it."""
    ai = {"type": "ai-title", "sessionId": "s1", "aiTitle": "By a model"}
    custom = {"type": "custom-title", "sessionId": "s1", "customTitle": "By a\n person"}

    for records in ([ai, custom, ai], [custom, ai]):
        transcript = read_transcript(write(*titled(*records)))
        assert transcript.title == folded(transcript).title == "By a person"
    assert isinstance(transcript.events[2].event, SessionUpdated)
    assert transcript.events[2].event.metadata == {"title_record": custom}


def test_records_when_of_any_other_type_are_kept_verbatim(write: Write) -> None:
    """A type nobody has heard of becomes a custom event of that name, with the whole record."""
    record = line("x1", "brand-new", payload_of={"deep": [1, 2.5, None]}, timestamp="2026-01-01")
    transcript = read_transcript(write(said("u1", "hi"), record))

    imported = transcript.events[1]
    assert imported.event == Custom(name="claude_code.brand-new", data=record)
    assert (imported.line, imported.source_id) == (2, "x1")
    assert imported.at == datetime(2026, 1, 1, tzinfo=UTC)
    assert json.loads(json.dumps(record)) == record

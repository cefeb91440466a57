"""Codex rollouts: facts counted by hand in the samples, and each rule on small files."""

from __future__ import annotations

from collections import Counter
from typing import Any

from eventlog.events import Custom, MessageAdded, SessionUpdated
from eventlog.integrations.codex_compaction import ENCRYPTED_SUMMARY
from eventlog.integrations.transcripts import ImportedCompaction, Transcript, read_transcript
from tests.integrations.conftest import Write, folded, sample

META = {"timestamp": "2026-01-05T12:00:00Z", "type": "session_meta", "payload": {"id": "c1"}}


def item(kind: str, **fields: Any) -> dict[str, Any]:
    """A line with a response item."""
    return {
        "timestamp": "2026-01-05T12:00:01Z",
        "type": "response_item",
        "payload": {"type": kind, **fields},
    }


def said(role: str, *texts: str) -> dict[str, Any]:
    """A line with a message."""
    kind = "output_text" if role == "assistant" else "input_text"
    return item("message", role=role, content=[{"type": kind, "text": text} for text in texts])


def shown(kind: str, **fields: Any) -> dict[str, Any]:
    """A line with an event of the user interface."""
    return {"timestamp": "t", "type": "event_msg", "payload": {"type": kind, **fields}}


def called(call_id: str, name: str = "shell") -> dict[str, Any]:
    """A line with a call of a tool."""
    return item("function_call", call_id=call_id, name=name, arguments='{"cmd":"ls"}')


def answered(call_id: str, output: Any = "ok") -> dict[str, Any]:
    """A line with a tool's result."""
    return item("function_call_output", call_id=call_id, output=output)


def compacted(**payload: Any) -> dict[str, Any]:
    """A line with a compaction."""
    return {"timestamp": "2026-01-05T12:00:02Z", "type": "compacted", "payload": payload}


def spent(total: int, output: int) -> dict[str, Any]:
    """A token count: the session's total and the last request's."""
    last = {
        "input_tokens": 100,
        "cached_input_tokens": 40,
        "output_tokens": output,
        "reasoning_output_tokens": 2,
        "total_tokens": 100 + output,
    }
    info = {"total_token_usage": {"total_tokens": total}, "last_token_usage": last}
    return shown("token_count", info=info)


def messages(transcript: Transcript) -> list[MessageAdded]:
    """The messages of a transcript."""
    return [each.event for each in transcript.events if isinstance(each.event, MessageAdded)]


def problems(transcript: Transcript) -> list[tuple[int, str]]:
    """The problems of a transcript, without those about times."""
    return [
        (each.line, each.what)
        for each in transcript.report.problems
        if not each.what.startswith("the timestamp")
    ]


# --- samples -------------------------------------------------------------------------------------


def test_fixture_when_it_has_every_record_type_reads_each() -> None:
    """118 lines in the newest shapes: 6 compactions, 8 calls, and no message twice."""
    transcript = read_transcript(sample("codex_all_record_types"))
    became = transcript.report.became

    assert len(transcript.events) == 118
    assert became["compacted"] == {"compaction.completed": 6}
    assert became["response_item/message"] == {"message.added": 3}
    assert became["event_msg/user_message"] == {"custom": 3}
    assert became["event_msg/agent_message"] == {"custom": 1}
    assert became["event_msg/thread_name_updated"] == {"session.updated": 1}
    assert became["event_msg/token_count"] == {"custom": 3}
    assert sum(map(len, (each.tool_calls for each in messages(transcript)))) == 8
    assert Counter(each.role for each in messages(transcript)) == {
        "assistant": 9,
        "tool": 8,
        "user": 3,
        "developer": 1,
    }
    assert len([each for each in transcript.report.problems if "timestamp" in each.what]) == 92
    assert len(folded(transcript).compactions) == 6


def test_fixture_when_a_compaction_is_encrypted_says_so() -> None:
    """The first compaction has no readable summary; what it cost is known from the token count."""
    transcript = read_transcript(sample("codex_all_record_types"))
    first = folded(transcript).compactions[0]

    assert (first.summary, first.tokens_before) == (ENCRYPTED_SUMMARY, 16_422)


def test_fixture_when_read_says_what_it_is() -> None:
    """Id, working directory, branch, versions and model come from the file."""
    transcript = read_transcript(sample("codex_all_record_types"))

    assert transcript.key == "019fc8be-3658-7ca3-9e29-000000000000"
    assert transcript.user_metadata == {
        "source": "codex",
        "cwd": "/tmp/repo",
        "cli_version": "0.146.0",
        "originator": "codex_cli_rs",
        "model_provider": "openai",
        "git_branch": "main",
        "git_commit": "0" * 40,
        "model": "gpt-5.6-sol",
    }


def test_small_rollout_when_it_has_no_items_takes_the_events_for_messages() -> None:
    """Without items the events are all there is of the messages; reasoning has its item."""
    transcript = read_transcript(sample("codex_small"))

    assert [(each.role, each.content) for each in messages(transcript)] == [
        ("user", "Hello Codex"),
        ("assistant", "Hi! I can help."),
        ("assistant", ""),
        ("tool", "hi\\n"),
        ("assistant", ""),
        ("assistant", "Done."),
    ]
    assert transcript.report.became["event_msg/agent_reasoning"] == {"custom": 1}
    assert messages(transcript)[4].reasoning == "(internal)"
    assert (transcript.title, problems(transcript)) == ("Hello Codex", [])


# --- messages ------------------------------------------------------------------------------------


def test_reply_when_it_is_several_items_is_one_message(write: Write) -> None:
    """Reasoning, text and calls up to the first result are one reply, with all items verbatim."""
    lines = [
        item("reasoning", summary=[{"type": "summary_text", "text": "Hm."}], encrypted_content="x"),
        said("assistant", "Looking."),
        shown("agent_message", message="Looking."),
        called("c1"),
        item("custom_tool_call", call_id="c2", name="apply_patch", input="*** Begin"),
    ]
    transcript = read_transcript(
        write(META, said("user", "go"), *lines, spent(10, 20), answered("c1"), answered("c2"))
    )

    _, reply, first, _ = messages(transcript)
    assert (reply.content, reply.reasoning, reply.agent) == ("Looking.", "Hm.", "codex")
    assert [(each.id, each.name, each.arguments) for each in reply.tool_calls] == [
        ("c1", "shell", '{"cmd":"ls"}'),
        ("c2", "apply_patch", "*** Begin"),
    ]
    assert reply.native == [each["payload"] for each in lines if each["type"] == "response_item"]
    assert reply.usage is not None and reply.token_count == 20
    assert (reply.usage.input_tokens, reply.usage.cached_tokens) == (100, 40)
    assert first.metadata["tool"] == "shell"
    assert [each["timestamp"] for each in reply.metadata["envelopes"]] == [
        "2026-01-05T12:00:01Z"
    ] * 4
    assert problems(transcript) == []


def test_reply_when_another_text_or_turn_follows_is_another_message(write: Write) -> None:
    """A second text, a result, a turn's end and a token count each end a reply."""
    transcript = read_transcript(
        write(
            META,
            said("assistant", "one"),
            said("assistant", "two"),
            shown("task_complete"),
            called("c1"),
            answered("c1"),
            said("assistant", "three"),
            spent(10, 5),
            called("c2"),
        )
    )

    assert [each.content for each in messages(transcript)] == ["one", "two", "", "ok", "three", ""]
    assert problems(transcript) == [(9, "the call c2 of tool 'shell' has no result")]


def test_usage_when_only_the_limits_changed_is_not_counted_again(write: Write) -> None:
    """Codex repeats a token count when rate limits change: the next reply doesn't get it."""
    transcript = read_transcript(
        write(META, said("assistant", "one"), spent(10, 5), said("assistant", "two"), spent(10, 5))
    )

    assert [each.token_count for each in messages(transcript)] == [5, None]


def test_result_when_not_a_text_is_read(write: Write) -> None:
    """Results come as text, as parts, or wrapped with a flag."""
    image = {"type": "input_image", "image_url": "data:…"}
    outputs: list[Any] = [
        "plain",
        {"content": "wrapped", "success": True},
        [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        [{"type": "input_text", "text": "a"}, image],
        None,
    ]
    transcript = read_transcript(
        write(META, *(answered(f"c{number}", each) for number, each in enumerate(outputs)))
    )

    contents = [each.content for each in messages(transcript)]
    assert contents == ["plain", "wrapped", "a\nb", [outputs[3][0], image], ""]
    assert problems(transcript)[0] == (2, "a result for the call c0, which is not in the file")


def test_shell_call_when_local_has_its_action_as_arguments(write: Write) -> None:
    """The oldest way to call the shell: an action instead of arguments."""
    action = {"type": "exec", "command": ["ls"]}
    transcript = read_transcript(
        write(META, item("local_shell_call", call_id="c1", action=action), answered("c1"))
    )

    (call,) = messages(transcript)[0].tool_calls
    assert (call.name, call.arguments) == ("local_shell", '{"type":"exec","command":["ls"]}')


def test_hosted_call_when_the_provider_ran_it_is_a_call_and_a_result(write: Write) -> None:
    """A web search has no result item: its status stands for one, so no call stays open."""
    search = item("web_search_call", id="ws", status="completed", action={"query": "q"})
    transcript = read_transcript(write(META, said("user", "go"), search, said("assistant", "Yes.")))

    _, reply, result, last = messages(transcript)
    assert [each.name for each in reply.tool_calls] == ["web_search"]
    assert (result.role, result.content, result.tool_call_id) == ("tool", "completed", "ws")
    assert result.native == [{"part_of": reply.message_id}] and last.content == "Yes."
    assert problems(transcript) == []


def test_message_when_of_another_agent_is_input_with_its_name(write: Write) -> None:
    """What another agent sent is a message to this one."""
    sent = item("agent_message", author="/root", content=[{"type": "input_text", "text": "Hi"}])
    transcript = read_transcript(write(META, sent, said("developer", "Be brief.")))

    first, second = messages(transcript)
    assert (first.role, first.name, first.content) == ("user", "/root", "Hi")
    assert second.role == "developer"


def test_message_when_its_role_is_unknown_is_kept_and_reported(write: Write) -> None:
    """A role that no message can have: the record is kept as it is."""
    record = said("narrator", "Meanwhile")
    transcript = read_transcript(write(META, record))

    assert transcript.events[1].event == Custom(name="codex.response_item.message", data=record)
    assert problems(transcript) == [(2, "a message with the role 'narrator'")]


def test_rollout_when_of_the_oldest_shape_is_read(write: Write) -> None:
    """Lines without payload: the header, state markers, bare items."""
    context = "<environment_context>\n  <cwd>/home/dev/code</cwd>\n</environment_context>"
    transcript = read_transcript(
        write(
            {
                "id": "old-1",
                "timestamp": "2025-09-02T17:17:41.762Z",
                "instructions": None,
                "git": {},
            },
            {"record_type": "state"},
            said("user", context)["payload"],
            said("user", "Fix it")["payload"],
            called("c1")["payload"],
            {"record_type": "state"},
            answered("c1")["payload"],
        )
    )

    assert (transcript.key, transcript.title) == ("old-1", "Fix it")
    assert transcript.user_metadata == {"source": "codex", "cwd": "/home/dev/code"}
    assert [each.role for each in messages(transcript)] == ["user", "user", "assistant", "tool"]
    assert transcript.report.became["record_type/state"] == {"custom": 2}
    assert problems(transcript) == []


def test_title_when_the_thread_is_named_is_the_name(write: Write) -> None:
    """The name that a person or Codex gave outranks the first prompt."""
    named = shown("thread_name_updated", thread_name="Repairs")
    transcript = read_transcript(
        write(META, shown("user_message", message="Fix it"), said("user", "Fix it"), named)
    )

    assert transcript.title == folded(transcript).title == "Repairs"
    assert transcript.events[3].event == SessionUpdated(
        title="Repairs", metadata={"title_record": named}
    )


def test_key_when_the_header_is_missing_comes_from_the_file_name(write: Write) -> None:
    """A rollout's name ends in the id of its session."""
    uuid = "019fc8be-3658-7ca3-9e29-aaaaaaaaaaaa"
    path = write(said("user", "hi"), name=f"rollout-2026-01-05T12-00-00-{uuid}.jsonl")

    assert read_transcript(path).key == uuid


# --- compactions ---------------------------------------------------------------------------------


def kept_of(transcript: Transcript) -> list[str]:
    """The contents of what the last compaction kept."""
    compaction = [e.event for e in transcript.events if isinstance(e.event, ImportedCompaction)][-1]
    events = [transcript.events[index].event for index in compaction.kept]
    return [str(each.content) for each in events if isinstance(each, MessageAdded)]


def test_compaction_when_it_replaces_the_history_keeps_what_it_repeats(write: Write) -> None:
    """Messages of the replacement that are found stay by reference; others are reported."""
    history = [
        said("developer", "Be brief.")["payload"],
        said("user", "Fix", "it")["payload"],
        said("user", "never said")["payload"],
        said("user", "Another model began: what happened")["payload"],
    ]
    transcript = read_transcript(
        write(
            META,
            said("developer", "Be brief."),
            said("user", "Fix", "it"),
            said("assistant", "Fixed."),
            spent(10, 5),
            compacted(message="what happened", replacement_history=history),
            said("user", "Thanks"),
        )
    )

    assert kept_of(transcript) == ["Be brief.", "Fix\n\nit"]
    (compaction,) = folded(transcript).compactions
    assert (compaction.summary, compaction.tokens_before) == ("what happened", 105)
    assert [each["role"] for each in folded(transcript).context()] == [
        "developer",
        "user",
        "user",
        "user",
    ]
    assert problems(transcript) == [
        (6, "1 messages of its replacement_history are not among the earlier ones")
    ]


def test_compaction_when_old_keeps_the_newest_user_messages(write: Write) -> None:
    """Without a replacement the newest user messages stay, up to Codex's own limit."""
    transcript = read_transcript(
        write(
            META,
            said("developer", "Be brief."),
            said("user", "forgotten"),
            said("user", "x" * 79_999),
            said("user", "newest"),
            said("assistant", "Yes."),
            compacted(message="s"),
        )
    )

    assert [len(each) for each in kept_of(transcript)] == [len("Be brief."), 79_999, len("newest")]


def test_compaction_when_it_says_nothing_is_kept_and_reported(write: Write) -> None:
    """Neither a summary nor a replacement: the context stays as it is."""
    transcript = read_transcript(write(META, said("user", "hi"), compacted(message=" ")))

    assert len(folded(transcript).context()) == 1
    assert problems(transcript) == [(3, "a compaction without its summary")]

"""The golden corpus: bytes as they were stored once must decode for ever.

tests/golden/events.jsonl has one stored event a line, exactly as `encode_event` wrote it.
`EXPECTED` says, line by line, what it means. Lines are added, never changed: a change here is a
change of bytes that users have in their databases.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec
import pytest

from eventlog.codec import decode_event, encode_event, encode_frame
from eventlog.compaction.policy import MODULE_9, OFF, CompactionPolicy
from eventlog.errors import CorruptEvent, EventLogError
from eventlog.events import (
    EVENT_CLASSES,
    TYPE_CODES,
    AgentActivated,
    AgentHandedOff,
    CompactionCompleted,
    CompactionFailed,
    CompactionPolicySet,
    CompactionRequested,
    CompactionReverted,
    Custom,
    FactPinned,
    MessageAdded,
    MessageCompleted,
    MessageInterrupted,
    MessagePinned,
    MessageRetracted,
    MessageStarted,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopRequested,
    ScratchpadWritten,
    SessionCleared,
    SessionClosed,
    SessionCreated,
    SessionDeleted,
    SessionExpirySet,
    SessionRewound,
    SessionUpdated,
    StoredEvent,
    TokensAppended,
    ToolCall,
    ToolCallClosed,
    Unrecognized,
    Usage,
    tag_of,
    type_code,
)

GOLDEN: Final = Path(__file__).parents[1] / "golden" / "events.jsonl"
LINES: Final = GOLDEN.read_bytes().removesuffix(b"\n").split(b"\n")

EXPECTED: Final[list[StoredEvent]] = [
    SessionCreated(),
    SessionCreated(
        key="chat-42",
        user_id="ada",
        title="Überraschung 🎉",
        metadata={"plan": "pro", "seats": 3, "ratio": 0.5, "beta": True, "tags": ["a", None]},
    ),
    SessionCreated(parent_session_id=UUID("018f0000-0000-7000-8000-000000000001"), parent_seq=120),
    SessionUpdated(title="Renamed"),
    SessionUpdated(metadata={"plan": None, "seats": 4}),
    SessionCleared(),
    SessionCleared(reason="asked for"),
    SessionRewound(to_seq=90),
    SessionRewound(to_seq=0, reason="start over"),
    SessionClosed(),
    SessionClosed(reason="done"),
    SessionDeleted(),
    SessionDeleted(reason="erasure request 7"),
    SessionExpirySet(),
    SessionExpirySet(ttl_seconds=3600),
    SessionExpirySet(expires_at=datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)),
    MessageAdded(role="user", content="Hi"),
    MessageAdded(role="user"),
    MessageAdded(role="system", content="Be brief."),
    MessageAdded(role="developer", content="Use tools."),
    MessageAdded(
        role="user",
        content=[
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.net/a.png"}},
        ],
        name="ada",
        message_id="m1",
        token_count=12,
        metadata={"source": "web"},
    ),
    MessageAdded(
        role="assistant",
        content="",
        message_id="m2",
        agent="planner",
        model="m-large",
        reasoning="They want the weather.",
        tool_calls=[
            ToolCall(id="call_1", name="weather", arguments='{"city": "Zürich"}'),
            ToolCall(id="call_2", name="now"),
        ],
        token_count=31,
        usage=Usage(input_tokens=100, output_tokens=31, cached_tokens=64, reasoning_tokens=8),
        finish_reason="tool_calls",
        native={"type": "message", "id": "msg_1", "status": "completed", "content": []},
    ),
    MessageAdded(role="tool", content="12 °C", tool_call_id="call_1"),
    MessageAdded(role="user", content='NUL:\0 quote:" backslash:\\ newline:\n tab:\t del:\x7f'),
    MessageAdded(role="user", content="שלום 👩‍👩‍👧 e\u0301 \u2028 \ufeff \U0010ffff"),
    MessageAdded(
        role="user",
        native=[
            0,
            -1,
            2**63 - 1,
            -(2**63),
            1.5,
            -0.0,
            1e300,
            5e-324,
            True,
            False,
            None,
            "",
            [],
            {},
        ],
    ),
    MessageStarted(message_id="m3"),
    MessageStarted(
        message_id="m4",
        role="tool",
        agent="coder",
        name="shell",
        model="m-small",
        metadata={"attempt": 2},
    ),
    TokensAppended(message_id="m3", texts=["Hel", "lo", "", " wörld"], ms=[0, 12, 0, 340]),
    TokensAppended(message_id="m3", texts=["Hm"], ms=[250], channel="reasoning"),
    TokensAppended(
        message_id="m3",
        texts=['{"ci', 'ty":'],
        ms=[5, 5],
        channel="tool-arguments",
        tool_call_id="call_1",
    ),
    MessageCompleted(message_id="m3"),
    MessageCompleted(
        message_id="m4",
        content="Hello wörld",
        reasoning="Hm",
        tool_calls=[ToolCall(id="call_1", name="weather", arguments='{"city":1}')],
        finish_reason="stop",
        usage=Usage(output_tokens=4),
        token_count=4,
        metadata={"ms": 607},
        native={"id": "chatcmpl-1"},
    ),
    MessageCompleted(message_id="m5", content=[{"type": "output_text", "text": "Hello"}]),
    MessageInterrupted(message_id="m3"),
    MessageInterrupted(
        message_id="m3",
        content="Hel",
        reasoning="Hm",
        tool_calls=[ToolCall(id="call_1", name="", arguments='{"ci')],
        reason="cancelled",
    ),
    MessageRetracted(message_id="m3"),
    MessageRetracted(message_id="m3", reason="undo"),
    AgentActivated(agent="planner"),
    AgentHandedOff(to_agent="coder"),
    AgentHandedOff(to_agent="coder", from_agent="planner", context={"files": ["a.py"]}),
    RunStarted(run_id="r1"),
    RunStarted(run_id="r1", agent="planner", metadata={"trace": "t1"}),
    RunFinished(run_id="r1"),
    RunFinished(run_id="r1", usage=Usage(input_tokens=1200, output_tokens=35)),
    RunFailed(run_id="r1"),
    RunFailed(run_id="r1", error="TimeoutError: 30 s"),
    RunStopRequested(run_id="r1"),
    RunStopRequested(run_id="r1", reason="user pressed stop"),
    CompactionRequested(),
    CompactionRequested(reason="context is full"),
    CompactionCompleted(summary="They talked about the weather.", from_seq=1, to_seq=90),
    CompactionCompleted(
        summary="They talked about the weather.",
        from_seq=91,
        to_seq=180,
        kept=[3, 92],
        model="m-small",
        prompt_version="3",
        tokens_before=90000,
        tokens_after=1200,
        usage=Usage(input_tokens=88000, output_tokens=400),
        metadata={"parts": 2},
    ),
    CompactionReverted(compaction_seq=181),
    CompactionFailed(reason="empty answer"),
    CompactionFailed(reason="length", from_seq=1, to_seq=90, attempts=3),
    ScratchpadWritten(name="plan", value={"steps": [1, 2]}),
    ScratchpadWritten(name="plan"),
    Custom(name="app.rated"),
    Custom(name="app.rated", data={"stars": 5}),
    MessagePinned(message_id="m1"),
    MessagePinned(message_id="m1", pinned=False),
    ToolCallClosed(tool_call_id="call_1"),
    ToolCallClosed(tool_call_id="call_1", reason="no output was recorded"),
    FactPinned(name="budget"),
    FactPinned(name="budget", text="At most 300 €."),
    CompactionPolicySet(),
    CompactionPolicySet(policy=CompactionPolicy()),
    CompactionPolicySet(policy=OFF),
    CompactionPolicySet(policy=MODULE_9),
    CompactionPolicySet(
        policy=CompactionPolicy(
            name="mine",
            enabled=False,
            threshold_tokens=50_000,
            threshold_share=0.75,
            window_tokens=200_000,
            messages_min=4,
            keep_messages=None,
            keep_tokens=5_000,
            keep_user_tokens=2_000,
            summary_tokens_max=900,
            orphan_seconds=60.5,
        )
    ),
    CompactionRequested(instructions="Keep the file names."),
    CompactionCompleted(
        summary="They talked about the weather.",
        from_seq=1,
        to_seq=90,
        model="m-small",
        tokens_before=90000,
        tokens_after=1200,
        context_tokens=120000,
        estimated=True,
        method="model",
        usage=Usage(input_tokens=88000, output_tokens=400),
        calls=2,
        duration_ms=5210,
    ),
    CompactionFailed(
        reason="429 Too Many Requests",
        kind="rate_limited",
        from_seq=1,
        to_seq=90,
        attempts=2,
        retry_after_ms=20000,
        model="m-small",
        usage=Usage(input_tokens=88000),
    ),
]

PAIRS: Final = list(zip(LINES, EXPECTED, strict=False))

DEFAULTS: Final[dict[str, dict[str, object]]] = {
    "session.created": {
        **{"key": None, "user_id": None, "title": None, "metadata": {}},
        **{"parent_session_id": None, "parent_seq": 0},
    },
    "session.updated": {"title": None, "metadata": {}},
    "session.cleared": {"reason": None},
    "session.rewound": {"reason": None},
    "session.closed": {"reason": None},
    "session.deleted": {"reason": None},
    "session.expiry_set": {"ttl_seconds": None, "expires_at": None},
    "message.added": {
        **{"content": "", "message_id": "", "agent": None, "name": None, "model": None},
        **{"reasoning": "", "tool_calls": [], "tool_call_id": None, "token_count": None},
        **{"usage": None, "finish_reason": None, "metadata": {}, "native": None},
    },
    "message.started": {
        **{"role": "assistant", "agent": None, "name": None, "model": None, "metadata": {}},
    },
    "tokens.appended": {"channel": "text", "tool_call_id": None},
    "message.completed": {
        **{"content": "", "reasoning": "", "tool_calls": [], "finish_reason": None},
        **{"usage": None, "token_count": None, "metadata": {}, "native": None},
    },
    "message.interrupted": {"content": "", "reasoning": "", "tool_calls": [], "reason": ""},
    "message.retracted": {"reason": None},
    "message.pinned": {"pinned": True},
    "tool_call.closed": {"reason": None},
    "agent.activated": {},
    "agent.handed_off": {"from_agent": None, "context": None},
    "run.started": {"agent": None, "metadata": {}},
    "run.finished": {"usage": None},
    "run.failed": {"error": ""},
    "run.stop_requested": {"reason": None},
    "compaction.requested": {"reason": None, "instructions": None},
    "compaction.completed": {
        **{"kept": [], "model": None, "prompt_version": None, "tokens_before": None},
        **{"tokens_after": None, "usage": None, "metadata": {}},
        **{"context_tokens": None, "estimated": False, "method": "", "calls": 0},
        **{"duration_ms": None},
    },
    "compaction.reverted": {},
    "compaction.failed": {
        **{"kind": "", "from_seq": 0, "to_seq": 0, "attempts": 1},
        **{"retry_after_ms": None, "model": None, "usage": None},
    },
    "compaction.policy_set": {"policy": None},
    "scratchpad.written": {"value": None},
    "fact.pinned": {"text": None},
    "custom": {"data": None},
}
"""What a field that isn't in the bytes stands for. Defaults aren't written: they are part of the
format like tags, and changing one would change what old events say."""

POLICY_DEFAULTS: Final[dict[str, object]] = {
    **{"name": "", "enabled": True, "threshold_tokens": None, "threshold_share": 0.9},
    **{"window_tokens": None, "messages_min": 2, "keep_messages": 20, "keep_tokens": 10_000},
    **{"keep_user_tokens": 20_000, "summary_tokens_max": 4_000, "orphan_seconds": 600.0},
}
"""The same of the policy inside `compaction.policy_set`. Who wants another default for those that
set nothing changes what the settings say, not these."""

NUMBERS: Final = {
    "session.created": 1,
    "session.updated": 2,
    "session.cleared": 3,
    "session.rewound": 4,
    "session.closed": 5,
    "session.deleted": 6,
    "session.expiry_set": 7,
    "message.added": 10,
    "message.started": 11,
    "tokens.appended": 12,
    "message.completed": 13,
    "message.interrupted": 14,
    "message.retracted": 15,
    "message.pinned": 16,
    "tool_call.closed": 17,
    "agent.activated": 20,
    "agent.handed_off": 21,
    "run.started": 30,
    "run.finished": 31,
    "run.failed": 32,
    "run.stop_requested": 33,
    "compaction.requested": 40,
    "compaction.completed": 41,
    "compaction.failed": 42,
    "compaction.reverted": 43,
    "compaction.policy_set": 44,
    "scratchpad.written": 50,
    "fact.pinned": 51,
    "custom": 60,
}
"""A second copy on purpose: a number that changes by accident changes in one place only."""


def test_corpus_when_counted_has_a_meaning_for_every_line() -> None:
    """Each line of the file has its line in `EXPECTED`."""

    assert len(LINES) == len(EXPECTED)


@pytest.mark.parametrize(("line", "meaning"), PAIRS, ids=range(len(PAIRS)))
def test_line_when_decoded_means_what_it_meant(line: bytes, meaning: StoredEvent) -> None:
    """Old bytes decode to the event they were made from, later fields at their defaults."""

    assert decode_event(line) == meaning


@pytest.mark.parametrize(("line", "meaning"), PAIRS, ids=range(len(PAIRS)))
def test_line_when_encoded_again_is_the_same_bytes(line: bytes, meaning: StoredEvent) -> None:
    """The codec writes today what it wrote then: a retry with the same event has the same bytes."""

    again = encode_event(meaning, bytes_max=100_000)

    assert again == line
    if isinstance(meaning, TokensAppended):
        assert encode_frame(meaning) == line


def test_corpus_when_compared_with_the_types_has_them_all() -> None:
    """Whoever adds an event adds lines here, and a variant with every field set."""
    covered = {tag_of(decode_event(line)) for line in LINES}
    fields: dict[str, set[str]] = {}
    for line in LINES:
        event = msgspec.json.decode(line)
        fields.setdefault(event.pop("type"), set()).update(event)

    assert covered == set(TYPE_CODES)
    for kind in EVENT_CLASSES:
        tag = str(kind.__struct_config__.tag)
        missing = set(kind.__struct_fields__) - fields[tag]
        assert not missing, f"no line of {tag} has {sorted(missing)}"


def test_corpus_when_a_type_is_missing_is_noticed() -> None:
    """The check above can fail: without its line a type is not covered."""
    covered = {tag_of(decode_event(line)) for line in LINES if b'"custom"' not in line}

    assert covered != set(TYPE_CODES)


def test_defaults_when_compared_are_those_of_all_time() -> None:
    """What was left out of old bytes still means the same; a new field is added to the table."""
    for kind in EVENT_CLASSES:
        assert defaults_of(kind) == DEFAULTS[str(kind.__struct_config__.tag)]
    assert defaults_of(CompactionPolicy) == POLICY_DEFAULTS


def test_corpus_when_compared_with_a_policy_has_all_of_it() -> None:
    """Each field of a policy is written in some line, and so is a policy that is all defaults."""
    policies = [
        msgspec.json.decode(line)["policy"]
        for line, meaning in PAIRS
        if isinstance(meaning, CompactionPolicySet) and meaning.policy is not None
    ]

    assert {name for each in policies for name in each} == set(CompactionPolicy.__struct_fields__)
    assert {} in policies


def defaults_of(kind: type[msgspec.Struct]) -> dict[str, object]:
    """What fields stand for that aren't given."""
    return {
        field.name: field.default
        if field.default_factory is msgspec.NODEFAULT
        # mypy calls a factory's type `object`
        else field.default_factory()
        for field in msgspec.structs.fields(kind)
        if not field.required
    }


def test_type_codes_when_read_are_the_numbers_of_all_time() -> None:
    """Numbers are stored in the table: none changes, none is used twice, none goes away."""

    assert NUMBERS.items() <= TYPE_CODES.items()
    assert len(set(TYPE_CODES.values())) == len(TYPE_CODES)
    assert all(0 < code < 2**15 for code in TYPE_CODES.values())  # a smallint, and 0 is nothing


def test_type_codes_when_compared_with_the_union_name_every_class() -> None:
    """Every class of the union has a tag, every tag a number, and no number is left over."""

    assert {str(kind.__struct_config__.tag) for kind in EVENT_CLASSES} == set(TYPE_CODES)
    assert len(EVENT_CLASSES) == len(TYPE_CODES)
    assert [type_code(event) for event in EXPECTED] == [
        TYPE_CODES[tag_of(event)] for event in EXPECTED
    ]


def test_decode_when_the_tag_is_from_the_future_keeps_the_bytes() -> None:
    """A newer version's event is `Unrecognized`, byte for byte, whatever is in it."""
    data = b'{"type":"message.translated","to":"de", "n": 1e5, "deep":[[{"type":"custom"}]]}'

    event = decode_event(data)

    assert event == Unrecognized(tag="message.translated", data=data)
    assert tag_of(event) == "message.translated"


@pytest.mark.parametrize(
    ("data", "meaning"),
    [
        (b'{"type":"session.cleared","by":"ada","at":{"x":[1]}}', SessionCleared()),
        (b'{"by":"ada","reason":"r","type":"session.cleared"}', SessionCleared(reason="r")),
        (
            b'{"type":"run.finished","run_id":"r","usage":{"output_tokens":1,"audio_tokens":2}}',
            RunFinished(run_id="r", usage=Usage(output_tokens=1)),
        ),
        (b' { "type" : "session.closed" }\n', SessionClosed()),
        (b'{"type":"session.closed","reason":null}', SessionClosed()),
    ],
)
def test_decode_when_there_is_more_than_it_knows_ignores_it(
    data: bytes, meaning: StoredEvent
) -> None:
    """An older program reads the events of a newer one: unknown fields, any order, any spacing."""

    assert decode_event(data) == meaning


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"type":5}',
        b'{"type":""}',
        b'{"type":"message.added"}',
        b'{"type":"message.added","role":"king"}',
        b'{"type":"message.added","role":"user","content":7}',
        b'{"type":"message.added","role":"user","content":"\xff"}',
        b'{"type":"message.added","role":"user","content":"\\ud800"}',
        b'{"type":"message.added","role":"user"',
        b'{"type":"message.added","role":"user"}x',
        b'{"type":"message.added","role":"user","native":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=range(14),
)
def test_decode_when_bytes_are_damaged_says_so(data: bytes) -> None:
    """What no version wrote raises `CorruptEvent`, with the beginning of the bytes, and no more."""
    with pytest.raises(CorruptEvent) as caught:
        decode_event(data)

    assert isinstance(caught.value, EventLogError)
    assert ascii(data[:20])[2:-1] in str(caught.value)
    assert len(str(caught.value)) < 600

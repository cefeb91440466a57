"""The codec: what goes in comes out the same, and what can't is refused with what and where."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import uuid
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.codec import DEPTH_MAX, check_text, decode_event, encode_event, encode_frame
from eventlog.errors import InvalidEvent, Refused
from eventlog.events import (
    EVENT_CLASSES,
    TYPE_CODES,
    AgentActivated,
    AgentHandedOff,
    CompactionCompleted,
    Custom,
    MessageAdded,
    MessageCompleted,
    MessageInterrupted,
    MessageStarted,
    RunFinished,
    ScratchpadWritten,
    SessionClosed,
    SessionCreated,
    SessionRewound,
    SessionUpdated,
    StoredEvent,
    TokenAppended,
    TokensAppended,
    ToolCall,
    Unrecognized,
    Usage,
    tag_of,
    type_code,
)
from tests.strategies import events, events_of, frames, json_values

BYTES_MAX: Final = 16 * 1024 * 1024
LONE: Final = "\ud800"


def encode(event: Any, bytes_max: int = BYTES_MAX) -> bytes:
    """The event's bytes, under a limit that is out of the way."""
    return encode_event(event, bytes_max=bytes_max)


def user(**fields: Any) -> MessageAdded:
    """A user's message with fields of any type, also of wrong ones."""
    return MessageAdded(role="user", **fields)


def of(kind: Any, **fields: Any) -> Any:
    """An instance with fields of any type: structs check nothing when they are made."""
    return kind(**fields)


def refusal(event: Any, bytes_max: int = BYTES_MAX) -> str:
    """The message with which an event is refused."""
    with pytest.raises(InvalidEvent) as caught:
        encode_event(event, bytes_max=bytes_max)
    assert isinstance(caught.value, Refused)
    message = str(caught.value)
    assert message.encode(), "the message itself must be printable"
    return message


def nested(depth: int, *, inside: Any = None, key: str | None = None) -> Any:
    """A value inside `depth` lists, or dicts when a key is given."""
    value = inside
    for _ in range(depth):
        value = [value] if key is None else {key: value}
    return value


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EVENT_CLASSES)
def test_event_when_encoded_and_decoded_is_the_same(kind: type[StoredEvent]) -> None:
    """Every class, with anything its fields may hold: equal after a round trip, in one line."""

    @given(events_of(kind))
    def check(event: StoredEvent) -> None:
        data = encode(event)

        assert decode_event(data) == event
        assert encode(decode_event(data)) == data
        assert b"\n" not in data
        assert type_code(event) == TYPE_CODES[tag_of(event)]

    check()


@given(events(), st.data())
def test_event_when_read_by_an_older_version_keeps_what_that_knows(
    event: StoredEvent, data: st.DataObject
) -> None:
    """Unknown fields anywhere at the top of the object change nothing."""
    fields = list(msgspec.json.decode(encode(event)).items())
    place = data.draw(st.integers(0, len(fields)))
    fields.insert(place, ("from_the_future", data.draw(json_values())))

    assert decode_event(msgspec.json.encode(dict(fields))) == event


@given(frames())
def test_frame_when_encoded_by_reply_is_what_the_codec_writes(frame: TokensAppended) -> None:
    """`encode_frame` skips the checks, not the format."""

    assert encode_frame(frame) == encode(frame)


@pytest.mark.parametrize(
    ("field", "value"),
    [("channel", "voice"), ("tool_call_id", LONE), ("tool_call_id", 5), ("message_id", None)],
)
def test_frame_when_it_would_not_read_back_is_refused(field: str, value: Any) -> None:
    """A frame that no reader could decode would park its session for good."""
    fields = {"message_id": "m", "texts": ["a"], "ms": [0], field: value}

    with pytest.raises(InvalidEvent, match=field):
        encode_frame(of(TokensAppended, **fields))


@given(json_values(20))
def test_free_form_when_it_is_json_survives_in_every_field(value: Any) -> None:
    """Whatever is JSON goes into `native`, `context`, `value`, `data` and metadata unchanged."""
    for event in (
        user(native=value, metadata={"value": value}),
        AgentHandedOff(to_agent="a", context=value),
        ScratchpadWritten(name="n", value=value),
        Custom(name="n", data=value),
    ):
        again = decode_event(encode(event))

        assert again == event
        assert repr(again) == repr(event)  # tells 1 from 1.0 and True, 0.0 from -0.0


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "a\0b\0",
        "👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇭",
        "שלום العربية \u202e\u2067",
        "line\u2028paragraph\u2029next\u0085",
        "Z" + "\u0301" * 5_000,
        "e\u0301 \u00e9",  # not normalised
        "\ufeff\ufffe\uffff\ufdd0\U0010ffff",
        "\r\n\t\b\f\x1b\x7f",
        '"\\/</script>&',
        "\\ud800 and \\u0000 written out",
    ],
    ids=range(11),
)
def test_text_when_it_is_unusual_is_kept_exactly(text: str) -> None:
    """NUL, emoji, right-to-left, separators, combining marks: the same code points come back."""
    event = MessageAdded(
        role="assistant",
        content=text,
        name=text,
        message_id=text,
        reasoning=text,
        tool_calls=[ToolCall(id=text, name=text, arguments=text)],
        metadata={text: text},
        native=[{text: [text]}],
    )

    again = decode_event(encode(event))

    assert again == event
    assert isinstance(again, MessageAdded)
    assert isinstance(again.content, str)
    assert [ord(each) for each in again.content] == [ord(each) for each in text]


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 2**53 + 1, 0, -1])
def test_integer_when_it_fits_64_bits_is_kept(number: int) -> None:
    """Also beyond 2^53, where floats end."""
    event = user(native=number, metadata={"n": [number]})

    assert decode_event(encode(event)) == event


@pytest.mark.parametrize("number", [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e22, 1.0, 123e-7])
def test_float_when_encoded_comes_back_to_the_bit(number: float) -> None:
    """A float stays a float, with its sign and its last bit."""
    again = decode_event(encode(user(native=number)))

    assert isinstance(again, MessageAdded)
    assert isinstance(again.native, float)
    assert again.native == number
    assert math.copysign(1, again.native) == math.copysign(1, number)


@pytest.mark.parametrize("key", [None, "k"])
def test_nesting_when_at_the_limit_is_stored(key: str | None) -> None:
    """`DEPTH_MAX` levels are kept, one more is refused; metadata's own object counts."""
    native = nested(DEPTH_MAX - 1, key=key, inside="x")

    assert decode_event(encode(user(native=native))) == user(native=native)
    assert "message.added.native is nested deeper than 128" in refusal(user(native=[native]))
    assert "message.added.metadata is nested deeper than 128" in refusal(
        user(metadata={"": native})
    )


def test_tuple_when_in_a_free_form_field_is_a_list() -> None:
    """JSON has one kind of sequence: a tuple is stored, and read back, as a list."""
    event = user(native=(1, (2, 3)), content=({"type": "text", "text": "x"},))

    assert decode_event(encode(event)) == user(
        native=[1, [2, 3]], content=[{"type": "text", "text": "x"}]
    )


def test_enum_when_it_is_a_string_or_number_is_its_value() -> None:
    """`StrEnum` and `IntEnum` members are strings and integers, and stored as such."""

    class Colour(enum.StrEnum):
        RED = "red"

    class Size(enum.IntEnum):
        BIG = 3

    event = user(name=Colour.RED, metadata={Colour.RED: [Colour.RED, Size.BIG]})

    assert decode_event(encode(event)) == user(name="red", metadata={"red": ["red", 3]})


@pytest.mark.parametrize("raw", [b'{"a": [1, 2.50, "\\u00e9"]}', b"1e2", b'"x"', b"null", b"  [ ]"])
def test_raw_when_it_is_json_is_stored_as_given(raw: bytes) -> None:
    """JSON that is encoded already goes in as it is: adapters need not decode it."""
    data = encode(user(native=msgspec.Raw(raw)))

    assert raw in data
    assert decode_event(data) == user(native=msgspec.json.decode(raw))


def test_raw_when_it_has_line_breaks_is_put_on_one_line() -> None:
    """A stored event is one line: server-sent events and JSONL carry it as it is."""
    pretty = msgspec.Raw(b'{\r\n  "text": "a\\nb",\n  "n": 1.0e5\n}\n')

    data = encode(user(native=pretty))

    assert b"\n" not in data
    assert b"\r" not in data
    assert b'"native":{"text":"a\\nb","n":1.0e5}' in data


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "where"),
    [
        (user(content="ab" + LONE), "message.added.content"),
        (user(content="\udfff"), "message.added.content"),
        (user(content=[{"type": "text", "text": LONE}]), "message.added.content[0].text"),
        (user(name=LONE), "message.added.name"),
        (user(message_id=LONE), "message.added.message_id"),
        (user(reasoning=LONE), "message.added.reasoning"),
        (user(tool_calls=[ToolCall(id="a", name=LONE)]), "message.added.tool_calls[0].name"),
        (
            user(
                tool_calls=[ToolCall(id="a", name="b"), ToolCall(id="c", name="d", arguments=LONE)]
            ),
            "message.added.tool_calls[1].arguments",
        ),
        (user(metadata={"a": {"b": [1, LONE]}}), "message.added.metadata.a.b[1]"),
        (user(metadata={"a": {LONE: 1}}), "a key of message.added.metadata.a"),
        (user(metadata={LONE: LONE + "x"}), "message.added.metadata"),
        (user(native={"output": [{"text": "x" * 1000 + LONE}]}), "message.added.native.output[0]"),
        (SessionCreated(key=LONE), "session.created.key"),
        (SessionCreated(title=LONE), "session.created.title"),
        (AgentActivated(agent=LONE), "agent.activated.agent"),
        (Custom(name=LONE), "custom.name"),
        (Custom(name="n", data=(LONE,)), "custom.data[0]"),
        (ScratchpadWritten(name="n", value=LONE), "scratchpad.written.value"),
        (MessageInterrupted(message_id="m", content=LONE), "message.interrupted.content"),
        (TokensAppended(message_id="m", texts=["a", LONE], ms=[0, 0]), "tokens.appended.texts[1]"),
    ],
    ids=range(20),
)
def test_surrogate_when_lone_is_refused_anywhere(event: StoredEvent, where: str) -> None:
    """A half of a pair has no UTF-8 form; the message says which text, and what to do."""
    message = refusal(event)

    assert where in message
    assert "lone surrogate (\\ud" in message
    assert "replace" in message


def test_surrogate_when_paired_in_utf16_fashion_is_refused_too() -> None:
    """Two surrogate code points are not the character that they'd be in UTF-16."""

    assert "at index 0" in refusal(user(content="\ud83d\ude00"))
    assert decode_event(encode(user(content="\U0001f600"))) == user(content="😀")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda number: user(native=number), "message.added.native is"),
        (lambda number: user(metadata={"score": number}), "message.added.metadata.score is"),
        (
            lambda number: user(native=[[1], {"a": [0.5, number]}]),
            "message.added.native[1].a[1] is",
        ),
        (lambda number: user(content=[{"v": number}]), "message.added.content[0].v is"),
        (lambda number: Custom(name="n", data={"": number}), "custom.data. is"),
        (lambda number: ScratchpadWritten(name="n", value=(number,)), "written.value[0] is"),
        (
            lambda number: AgentHandedOff(to_agent="a", context=number),
            "agent.handed_off.context is",
        ),
    ],
    ids=range(7),
)
def test_float_when_not_finite_is_refused(make: Any, where: str, number: float) -> None:
    """NaN and the infinities would be written as null without a word; they are refused, by name."""
    message = refusal(make(number))

    assert f"{where} {number}" in message


def test_message_when_it_names_a_key_with_a_lone_surrogate_is_printable() -> None:
    """Logs and terminals must be able to show every refusal."""

    assert "metadata.\\ud800 is nan" in refusal(user(metadata={LONE: math.nan}))


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 2**64 + 1, -(2**64), 10**400])
def test_integer_when_beyond_64_bits_is_refused(number: int) -> None:
    """In free-form fields and in fields that are numbers, wherever they are."""
    for event, where in [
        (user(native=number), "message.added.native "),
        (user(metadata={"a": [{"b": number}]}), "message.added.metadata.a[0].b "),
        (user(token_count=number), "message.added.token_count "),
        (user(usage=Usage(cached_tokens=number)), "message.added.usage.cached_tokens "),
        (SessionRewound(to_seq=number), "session.rewound.to_seq "),
        (
            CompactionCompleted(summary="s", from_seq=1, to_seq=2, kept=[1, number]),
            "compaction.completed.kept ",
        ),
        (RunFinished(run_id="r", usage=Usage(input_tokens=number)), "run.finished.usage.input"),
    ]:
        message = refusal(event)

        assert where in message
        assert "beyond 64 bits" in message


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("depth", [DEPTH_MAX + 1, 10_000])
def test_nesting_when_too_deep_is_refused(depth: int, key: str | None) -> None:
    """10,000 levels of lists or dicts end in an error, not in the end of the process."""
    deep = nested(depth, key=key)

    assert "message.added.native is nested deeper than 128 levels" in refusal(user(native=deep))
    assert "metadata is nested deeper" in refusal(user(metadata={"a": deep}))
    assert "content is nested deeper" in refusal(user(content=[{"a": deep}]))
    assert "custom.data is nested deeper" in refusal(Custom(name="n", data=deep))
    assert "message.added" in refusal(user(name=deep))
    assert "message.added" in refusal(user(tool_calls=deep))


def test_nesting_when_a_value_holds_itself_is_refused() -> None:
    """A list in itself is as deep as it gets."""
    loop: list[Any] = []
    loop.append(loop)
    ring: dict[str, Any] = {}
    ring["ring"] = ring

    assert "nested deeper" in refusal(user(native=loop))
    assert "nested deeper" in refusal(user(metadata=ring))


def test_values_when_shared_over_and_over_are_refused_before_they_are_written_out() -> None:
    """60 lists, each holding the next one twice, would be 2^60 values of JSON."""
    bomb: Any = "lol"
    for _ in range(60):
        bomb = [bomb, bomb]

    assert "custom.data holds more values" in refusal(Custom(name="n", data=bomb), 10_000)


@pytest.mark.parametrize("key", [1, None, True, 1.5, b"a", ("a",), datetime.date(2026, 1, 1)])
def test_key_when_not_a_string_is_refused(key: Any) -> None:
    """JSON's keys are strings; another one would come back as its text."""

    assert f"message.added.metadata has the key {key!r}" in refusal(user(metadata={key: 1}))
    assert "message.added.native.a[0] has the key" in refusal(user(native={"a": [{key: 1}]}))


class Unstorable:
    """An object of no kind that JSON knows."""


class Array:
    """As numpy's arrays: it can't be asked whether it is empty, nor compared with yes or no."""

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    def __eq__(self, other: object) -> Any:
        return self


class Token(str):
    """A string with a class of its own."""

    __slots__ = ()


class Score(float):
    """As numpy's float64: a float with a class of its own."""


class Colour(enum.Enum):
    """Not a string, though its value is one."""

    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        b"",
        bytearray(b"x"),
        memoryview(b"x"),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        datetime.date(2026, 1, 1),
        datetime.timedelta(0),
        {1, 2},
        set(),
        frozenset(),
        decimal.Decimal("0"),
        decimal.Decimal("1.5"),
        uuid.UUID(int=0),
        1 + 2j,
        range(3),
        iter([1]),
        Unstorable(),
        Unstorable,
        Array(),
        Usage(input_tokens=1),
        Token("x"),
        Score(1.5),
        Colour.RED,
        len,
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_when_not_json_is_refused_anywhere(value: Any) -> None:
    """Also empty ones, which are false and easily overlooked; the message names type and place."""
    name = type(value).__name__
    for event, where in [
        (user(native=value), "message.added.native"),
        (user(metadata={"a": value}), "message.added.metadata.a"),
        (user(native=[{"b": [0, value]}]), "message.added.native[0].b[1]"),
        (user(content=[{"c": value}]), "message.added.content[0].c"),
        (AgentHandedOff(to_agent="a", context=value), "agent.handed_off.context"),
        (ScratchpadWritten(name="n", value=value), "scratchpad.written.value"),
        (Custom(name="n", data=value), "custom.data"),
    ]:
        assert f"{where} is a {name}" in refusal(event)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"a"}',
        b"1 2",
        b'1,"name":"injected"',
        b"NaN",
        b"Infinity",
        b"1e999",
        b'"\xff"',
        b'"\\ud800"',
        b"'x'",
        b"[1,]",
        b'"\n"',
    ],
)
def test_raw_when_not_json_is_refused(raw: bytes) -> None:
    """What is stored for ever is looked at once: the message says which field is no JSON."""

    assert "message.added.native is a Raw that is no JSON" in refusal(user(native=msgspec.Raw(raw)))
    assert "metadata.a[0] is a Raw that is no JSON" in refusal(
        user(metadata={"a": [msgspec.Raw(raw)]})
    )


@pytest.mark.parametrize("raw", [b"9223372036854775808", b"1" + b"0" * 400])
def test_raw_when_it_holds_large_integers_is_refused(raw: bytes) -> None:
    """A Raw is held to the same limits as everything else."""

    assert "beyond 64 bits" in refusal(user(native=msgspec.Raw(b"[" + raw + b"]")))


@pytest.mark.parametrize("depth", [DEPTH_MAX + 1, 10_000, 1_000_000])
def test_raw_when_too_deep_is_refused(depth: int) -> None:
    """Also a Raw so deep that looking at it is refused by the decoder."""
    raw = msgspec.Raw(b"[" * depth + b"]" * depth)

    assert "nested deeper than 128" in refusal(user(native=raw))


@pytest.mark.parametrize(
    ("event", "where"),
    [
        (of(MessageAdded, role=5), "$.role"),
        (of(MessageAdded, role="king"), "$.role"),
        (of(MessageAdded, role=None), "$.role"),
        (user(content=None), "$.content"),
        (user(content=5), "$.content"),
        (user(content={"type": "text"}), "$.content"),
        (user(content=["text"]), "$.content[0]"),
        (user(content=b"bytes"), "content is a bytes"),
        (user(tool_calls="x"), "$.tool_calls"),
        (user(tool_calls=None), "$.tool_calls"),
        (user(tool_calls=[{"id": "a"}]), "$.tool_calls[0]"),
        (user(tool_calls=[{"id": "a", "name": "b"}]), "tool_calls is a list that would read back"),
        (
            user(tool_calls=[of(ToolCall, id="a", name="b", arguments={})]),
            "$.tool_calls[0].arguments",
        ),
        (user(metadata=None), "$.metadata"),
        (user(metadata=[1]), "$.metadata"),
        (user(metadata="{}"), "$.metadata"),
        (user(token_count="5"), "$.token_count"),
        (user(token_count=1.5), "$.token_count"),
        (user(token_count=True), "$.token_count"),
        (user(usage={"input_tokens": 1}), "usage is a dict that would read back as Usage("),
        (user(usage={"input_tokens": "1"}), "$.usage.input_tokens"),
        (user(usage=7), "$.usage"),
        (user(name=5), "$.name"),
        (user(name=b"ada"), "name is a bytes that would read back as 'YWRh'"),
        (user(reasoning=b""), "reasoning is a bytes that would read back as ''"),
        (user(message_id=None), "$.message_id"),
        (user(message_id=uuid.UUID(int=7)), "message_id is a UUID that would read back"),
        (
            of(SessionUpdated, title=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)),
            "title is a datetime",
        ),
        (of(SessionUpdated, title=msgspec.Raw(b'"a","metadata":{}')), "title is a Raw"),
        (of(SessionUpdated, title=Token("x")), "objects of type Token"),
        (of(SessionUpdated, title=Unstorable()), "objects of type Unstorable"),
        (of(SessionCreated, parent_session_id="x"), "$.parent_session_id"),
        (
            of(SessionCreated, parent_session_id=str(uuid.UUID(int=7))),
            "parent_session_id is a str that would read back as UUID(",
        ),
        (of(SessionRewound, to_seq=None), "$.to_seq"),
        (of(SessionRewound, to_seq="90"), "$.to_seq"),
        (of(MessageStarted, message_id=None), "$.message_id"),
        (of(MessageInterrupted, message_id="m", content=[]), "$.content"),
        (of(MessageCompleted, message_id="m", usage=[1]), "$.usage"),
        (of(AgentActivated, agent=None), "$.agent"),
        (of(CompactionCompleted, summary="s", from_seq=1, to_seq=2, kept=[1.5]), "$.kept[0]"),
        (of(CompactionCompleted, summary="s", from_seq=1, to_seq=2, kept=None), "$.kept"),
        (of(TokensAppended, message_id="m", texts=["a"], ms=[1], channel="voice"), "$.channel"),
    ],
    ids=range(42),
)
def test_field_when_of_the_wrong_type_is_refused(event: StoredEvent, where: str) -> None:
    """Structs check nothing when they are made; the codec does, and names event and field."""
    message = refusal(event)

    assert tag_of(event) in message
    assert where in message


def test_field_when_a_tuple_of_the_right_things_is_stored() -> None:
    """A tuple where a list belongs loses nothing."""
    calls = (ToolCall(id="a", name="b"),)

    assert decode_event(encode(user(tool_calls=calls))) == user(tool_calls=list(calls))


@pytest.mark.parametrize(
    "thing",
    [
        TokenAppended(message_id="m", text="x"),
        Unrecognized(tag="message.translated", data=b'{"type":"message.translated"}'),
        "message",
        {"type": "message.added", "role": "user"},
        None,
        Usage(),
        MessageAdded,
        type("Mine", (MessageAdded,), {}, kw_only=True, frozen=True, tag="mine")(role="user"),
    ],
    ids=range(8),
)
def test_thing_when_not_a_stored_event_is_refused(thing: Any) -> None:
    """Increments, unrecognized events, dicts, subclasses: the message lists what can be."""
    message = refusal(thing)

    assert f"{type(thing).__name__} can't be appended" in message
    assert "MessageAdded" in message
    assert "session.reply()" in message
    assert "TokensAppended" not in message


def test_size_when_within_the_limit_is_stored_and_one_byte_more_is_refused() -> None:
    """10 MB are fine where the limit allows them; the message has the size, the limit, its name."""
    large = user(content="x" * 10_000_000)
    size = len(encode(large))

    assert encode(large, size) == encode(large)
    assert decode_event(encode(large)) == large
    message = refusal(large, size - 1)
    assert f"message.added is {size:,} bytes; the limit is {size - 1:,}" in message
    assert "EVENTLOG_EVENT_BYTES_MAX" in message


def test_size_when_measured_counts_bytes_not_characters() -> None:
    """A NUL takes six bytes of JSON, an emoji four."""
    empty = len(encode(user(content="_"))) - 1

    assert len(encode(user(content="\0" * 10))) == empty + 60
    assert len(encode(user(content="😀" * 10))) == empty + 40
    assert "the limit is" in refusal(user(content="\0" * 10), empty + 59)


def test_event_when_refused_does_not_spoil_the_next() -> None:
    """The encoder has no memory of what it refused."""
    for bad in (user(content=LONE), user(native=nested(10_000)), user(name=5)):
        refusal(bad)

        assert encode(SessionClosed()) == b'{"type":"session.closed"}'


def test_check_text_when_asked_refuses_lone_surrogates_only() -> None:
    """What `reply.write` asks for each increment; the answer is its size as JSON."""
    for text in ("", "abc", "\0 ok 😀", '"\n'):
        assert check_text(text) == len(msgspec.json.encode(text)) - 2

    with pytest.raises(InvalidEvent, match="lone surrogate at index 2"):
        check_text("ab\udc00")


@pytest.mark.parametrize("text", [None, 5, b"", b"bytes", ["a"], Token("x"), Unstorable()])
def test_check_text_when_it_is_no_text_refuses_it(text: Any) -> None:
    """Numbers would be taken for text by the encoder, and bytes turned into base64."""
    with pytest.raises(InvalidEvent, match=f"must be a str, not {type(text).__name__}"):
        check_text(text)


def test_tag_when_asked_is_the_stored_one() -> None:
    """Of stored events, of the increments that readers see, and of what is unrecognized."""

    assert tag_of(SessionClosed()) == "session.closed"
    assert tag_of(TokenAppended(message_id="m", text="x")) == "token.appended"
    assert tag_of(Unrecognized(tag="a.b", data=b"")) == "a.b"

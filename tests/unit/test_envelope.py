"""Rows, their packed form, their events one by one, and the ids that everything goes by."""

from __future__ import annotations

import struct
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.codec import encode_event, encode_frame
from eventlog.envelope import (
    BY_ID,
    FRAME,
    SEALS,
    SESSION_IN_HEADER,
    SPAN_MAX,
    TOMBSTONE,
    RecordedEvent,
    Row,
    as_frame,
    closing_id_of,
    derived_id,
    expand,
    iterate_pages,
    new_id,
    owner_id_of,
    pack_row,
    session_id_of,
    shard_of,
    unpack_row,
)
from eventlog.errors import CorruptEvent, InvalidRequest
from eventlog.events import MessageAdded, TokenAppended, TokensAppended, Unrecognized
from tests.factories import BEGIN, SESSION, rows
from tests.strategies import histories

LONE: Final = "\ud800"
_INT64: Final = st.integers(-(2**63), 2**63 - 1)
_INT16: Final = st.integers(-(2**15), 2**15 - 1)
ROWS: Final = st.builds(
    Row, _INT64, _INT64, _INT64, st.uuids(), st.uuids(), _INT16, _INT16, _INT16, st.binary()
)


def frame_row(last_seq: int, *texts: str) -> Row:
    """A frame whose last increment has the seq `last_seq`."""
    frame = TokensAppended(
        message_id="m",
        texts=list(texts),
        ms=[1] * len(texts),
        channel="tool-arguments",
        tool_call_id="c1",
    )
    return Row(1, last_seq, 0, SESSION, UUID(int=9), len(texts), 12, FRAME, encode_frame(frame))


def single_row(seq: int) -> Row:
    """A row of one event."""
    data = encode_event(MessageAdded(role="user", content=str(seq)), bytes_max=1000)
    return Row(1, seq, 0, SESSION, UUID(int=seq), 1, 10, 0, data)


# --- rows ----------------------------------------------------------------------------------------


@given(ROWS)
def test_row_when_packed_and_unpacked_is_the_same(row: Row) -> None:
    """Any row, to the last bit of every field; the session id stands where the hub looks for it."""
    packed = pack_row(row)

    assert unpack_row(packed) == row
    assert packed[SESSION_IN_HEADER] == row.session_id.bytes
    assert packed.endswith(row.data)


def test_row_when_packed_has_the_form_of_all_time() -> None:
    """Processes of two versions share one feed: the header's layout is frozen."""
    row = Row(1, 2, 3, UUID(int=4), UUID(int=5), 6, 7, 8, b"data")

    assert pack_row(row) == (
        bytes.fromhex("0000000000000001 0000000000000002 0000000000000003")
        + bytes.fromhex("0000000000000000 0000000000000004 0000000000000000 0000000000000005")
        + bytes.fromhex("0006 0007 0008")
        + b"data"
    )


@pytest.mark.parametrize("length", [0, 1, 61])
def test_unpack_when_shorter_than_a_header_raises(length: int) -> None:
    """What is too short is no row; its data may be empty, though."""
    with pytest.raises(struct.error):
        unpack_row(b"x" * length)

    assert unpack_row(b"\0" * 62).data == b""


def test_flags_when_read_are_those_of_all_time() -> None:
    """Bits are stored in the table, and named in SQL."""

    assert (FRAME, BY_ID, SEALS, TOMBSTONE) == (1, 2, 4, 8)
    assert SPAN_MAX == 256


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001
def test_recorded_at_when_read_is_exact_to_the_microsecond(naive: datetime) -> None:
    """The time passes through an integer, never through one too few digits."""
    time = naive.replace(tzinfo=UTC)
    us = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    assert msgspec.structs.replace(single_row(1), recorded_us=us).recorded_at == time


def test_first_seq_when_a_row_spans_many_is_that_of_its_first_event() -> None:
    """seq is the last event's: the first is span - 1 before."""

    assert frame_row(12, "a", "b", "c").first_seq == 10
    assert single_row(12).first_seq == 12


# --- expanding -----------------------------------------------------------------------------------


def test_expand_when_a_frame_gives_one_event_for_each_seq() -> None:
    """Readers never see frames: each increment has its own seq, and the row's id and time."""
    row = frame_row(12, "a", "", "c")

    events = expand(row)

    assert events == [
        RecordedEvent(
            SESSION,
            seq,
            row.event_id,
            row.recorded_at,
            TokenAppended(message_id="m", text=text, channel="tool-arguments", tool_call_id="c1"),
        )
        for seq, text in [(10, "a"), (11, ""), (12, "c")]
    ]


@given(
    st.sampled_from((1, 2, 3, 32, SPAN_MAX)),
    st.integers(5, 1000),
    st.integers(-5, SPAN_MAX + 5),
    st.none() | st.integers(-5, 40),
)
def test_expand_when_cut_inside_a_frame_gives_exactly_the_seqs_asked_for(
    span: int, before: int, after_place: int, until_place: int | None
) -> None:
    """`after < seq <= until`, wherever the two cursors stand: inside, outside, crossed."""
    row = frame_row(before + span, *(str(before + each) for each in range(1, span + 1)))
    after = before + after_place % (span + 5) - 2
    until = None if until_place is None else before + until_place

    events = expand(row, after=after, until=until)

    seqs = range(before + 1, before + span + 1)
    asked = [seq for seq in seqs if seq > after and (until is None or seq <= until)]
    assert [each.seq for each in events] == asked
    assert [each.event.text for each in events if isinstance(each.event, TokenAppended)] == [
        str(seq) for seq in asked
    ]


@pytest.mark.parametrize(
    ("after", "until", "count"),
    [(0, None, 1), (4, None, 1), (5, None, 0), (6, None, 0), (0, 5, 1), (0, 4, 0), (0, 0, 0)],
)
def test_expand_when_a_single_event_is_cut_keeps_to_the_cursors_too(
    after: int, until: int | None, count: int
) -> None:
    """A row of one event at seq 5 is in or out like an increment."""

    assert len(expand(single_row(5), after=after, until=until)) == count


def test_expand_when_the_event_is_from_the_future_hands_it_on() -> None:
    """A type of a newer version is a single event with its bytes."""
    data = b'{"type":"message.translated"}'
    row = msgspec.structs.replace(single_row(3), data=data, type=99)

    [event] = expand(row)

    assert event.event == Unrecognized(tag="message.translated", data=data)


def test_expand_when_the_row_is_damaged_raises() -> None:
    """A poison row is an error of its own, not a wrong event."""
    row = msgspec.structs.replace(single_row(3), data=b"{")

    with pytest.raises(CorruptEvent):
        expand(row)


def test_as_frame_when_given_a_frame_keeps_it_whole() -> None:
    """Those who ask for frames get one event a row, under the seq of its last increment."""
    row = frame_row(12, "a", "b")

    whole = as_frame(row)

    assert (whole.seq, whole.event_id) == (12, row.event_id)
    assert isinstance(whole.event, TokensAppended)
    assert whole.event.texts == ["a", "b"]


@pytest.mark.parametrize(
    ("until", "seq", "texts"),
    [(10, 10, ["a"]), (11, 11, ["a", "b"]), (12, 12, ["a", "b", "c"]), (99, 12, ["a", "b", "c"])],
)
def test_as_frame_when_cut_ends_with_that_increment(until: int, seq: int, texts: list[str]) -> None:
    """A fork's parent is read up to a seq that may be inside of a frame."""
    cut = as_frame(frame_row(12, "a", "b", "c"), until=until)

    assert cut.seq == seq
    assert isinstance(cut.event, TokensAppended)
    assert cut.event.texts == texts
    assert cut.event.ms == [1] * len(texts)


@given(histories(), st.data())
def test_history_when_stored_and_read_between_two_cursors_is_the_same(
    history: list[RecordedEvent], data: st.DataObject
) -> None:
    """Rows packed, unpacked and expanded are the events that went in, for any part of a session."""
    after = data.draw(st.integers(0, len(history)))
    until = data.draw(st.none() | st.integers(0, len(history)))
    stored = [unpack_row(pack_row(row)) for row in rows(history)]

    events = list(iterate_pages(stored, after=after, until=until))

    wanted = history[after : len(history) if until is None else until]
    assert [(each.seq, each.event) for each in events] == [
        (each.seq, each.event) for each in wanted
    ]
    assert all(each.session_id == SESSION and each.recorded_at >= BEGIN for each in events)


# --- identities ----------------------------------------------------------------------------------


def test_new_id_when_made_is_a_uuid7_of_now() -> None:
    """Version and variant are those of RFC 9562, the first 48 bits the milliseconds."""
    before = datetime.now(UTC)

    made = new_id()

    after = datetime.now(UTC)
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    ms = made.int >> 80
    assert int(before.timestamp() * 1000) <= ms <= int(after.timestamp() * 1000)


def test_new_id_when_made_over_time_sorts_by_time() -> None:
    """Ids of different milliseconds sort as they were made; no two are the same."""
    made = [new_id() for _ in range(20_000)]

    times = [each.int >> 80 for each in made]
    assert times == sorted(times)
    assert times == [each.int >> 80 for each in sorted(made)]
    assert len(set(made)) == len(made)
    assert all(each.version == 7 and each.variant == uuid.RFC_4122 for each in made)


def test_session_id_when_the_key_is_a_uuid_is_that_uuid() -> None:
    """As an object, or as text in either case, with or without hyphens; the tenant is no matter."""
    for key in (SESSION, str(SESSION), str(SESSION).upper(), SESSION.hex, SESSION.hex.upper()):
        assert session_id_of(key, 0) == SESSION
        assert session_id_of(key, 7) == SESSION


def test_session_id_when_the_key_is_text_is_the_same_for_ever() -> None:
    """Frozen values: another namespace or form would lose every session that has a key."""

    assert str(session_id_of("chat-42", 0)) == "42fd8e2b-8ac9-5e6c-8285-256c29aaaedf"
    assert str(owner_id_of("ada", 0)) == "31743ae1-589a-577e-b058-15c96df2960b"
    assert str(closing_id_of(SESSION, "m1")) == "414343f3-89fd-5050-bf33-919e9fe5cdf5"
    assert str(derived_id(SESSION, 1)) == "a1ac3ef3-02cc-5ce3-bc3a-0a81817c52ce"
    assert derived_id(SESSION, 0) == SESSION


@pytest.mark.parametrize(
    "key",
    [
        "{018f0000-0000-7000-8000-000000000001}",
        "urn:uuid:018f0000-0000-7000-8000-000000000001",
        "018f000000007000800000000000000_",
        "+18f0000000070008000000000000001",
        "0x8f0000000070008000000000000001",
        " 18f0000000070008000000000000001",
        "018f_000000070008000000000000001",
        "٠18f0000000070008000000000000001",
        "018f-0000-0000-7000-8000-0000-0000-0001",
        "018f00000000-7000-8000-000000000001",
    ],
)
def test_session_id_when_the_key_only_resembles_a_uuid_is_its_own(key: str) -> None:
    """`UUID()` takes signs, underscores and spaces: keys that differ would meet in one session."""

    assert session_id_of(key, 0) == uuid.uuid5(_namespace(), f"0:{key}")


@given(st.lists(st.tuples(st.text(), st.integers(0, 3)), unique=True, max_size=20))
def test_session_id_when_key_or_tenant_differ_differs(keys: list[tuple[str, int]]) -> None:
    """No two keys of a tenant, and no two tenants, share a session; nor do users and keys."""
    ids = {session_id_of(key, tenant_id) for key, tenant_id in keys}
    owners = {owner_id_of(key, tenant_id) for key, tenant_id in keys}

    assert len(ids) == len(owners) == len(keys)
    assert not ids & owners


def test_ids_when_the_name_has_no_utf8_form_are_refused() -> None:
    """A lone surrogate in a key, a user or a message id is a request that makes no sense."""
    with pytest.raises(InvalidRequest, match=r"'0:a\\ud800' has a lone surrogate"):
        session_id_of("a" + LONE, 0)
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        owner_id_of(LONE, 0)
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        closing_id_of(SESSION, LONE)


def test_closing_id_when_message_or_session_differ_differs() -> None:
    """One end for each message of each session, and none that a batch's derived id could take."""
    ids = {
        closing_id_of(session, message)
        for session in (SESSION, UUID(int=1))
        for message in ("m1", "m2", "", "1", "close:m1")
    }

    assert len(ids) == 10
    assert not ids & {derived_id(SESSION, index) for index in range(100)}


def test_derived_id_when_a_batch_is_long_is_different_for_each_event() -> None:
    """The first event has the batch's own id, the others ids that follow from it."""
    ids = [derived_id(SESSION, index) for index in range(1_000)]

    assert ids[0] == SESSION
    assert len(set(ids)) == 1_000
    assert ids == [derived_id(SESSION, index) for index in range(1_000)]


def test_shard_when_computed_is_what_sql_computes() -> None:
    """The last two bytes modulo the number of shards, frozen: rows are stored by it."""
    session_id = UUID("00000000-0000-0000-0000-00000000abcd")

    assert shard_of(session_id, 1) == 0
    assert shard_of(session_id, 16) == 0xD
    assert shard_of(session_id, 4096) == 0xBCD
    assert shard_of(session_id, 1000) == 0xABCD % 1000
    assert shard_of(UUID(int=2**128 - 1), 4096) == 4095


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("shards", [16, 100])
def test_shard_when_ids_are_many_is_evenly_spread(by_key: bool, shards: int) -> None:
    """UUIDv7s made in one burst and ids of numbered keys spread over all shards."""
    count = 400 * shards
    ids = [session_id_of(f"chat-{n}", 0) if by_key else new_id() for n in range(count)]

    loads = Counter(shard_of(each, shards) for each in ids)

    # 400 in a shard, standard deviation 20: seven deviations come once in 10^12.
    assert set(loads) == set(range(shards))
    assert 260 < min(loads.values()) <= max(loads.values()) < 540


def _namespace() -> UUID:
    return UUID("6f1f0a52-6c0e-5d0b-9a53-5f0d7c1b2a10")

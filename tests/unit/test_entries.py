"""The chunked sequence of messages, held against a plain list."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from eventlog.entries import CHUNK_LENGTH, Chunk, ChunkMissing, Entries, Message
from eventlog.events import ToolCall, Usage
from tests.factories import BEGIN

EDGES: Final = (0, 1, 2, 255, 256, 257, 511, 512, 513, 1000)
"""Lengths around the ends of chunks."""


def message(seq: int, content: str = "") -> Message:
    """A message that its seq tells apart."""
    return Message(
        message_id=f"m{seq}",
        seq=seq,
        role="user",
        content=content,
        recorded_at=BEGIN,
        closed_seq=seq,
    )


def messages(count: int, step: int = 2) -> list[Message]:
    """Messages with the seqs step, 2·step, 3·step, …"""
    return [message(place * step) for place in range(1, count + 1)]


def entries_of(plain: list[Message]) -> Entries:
    """The same messages, appended one by one."""
    entries = Entries()
    for place, each in enumerate(plain):
        assert entries.append(each) == place
    return entries


def encoded(plain: list[Message]) -> Entries:
    """The same messages as a snapshot gives them: in chunks that nobody has looked into."""
    chunks = []
    for start in range(0, len(plain), CHUNK_LENGTH):
        part = plain[start : start + CHUNK_LENGTH]
        data = Chunk(part).encode()
        chunks.append(
            Chunk(None, encoded=data, first_seq=part[0].seq, count=len(part), stored_as=start + 1)
        )
    return Entries(chunks)


@pytest.mark.parametrize("make", [entries_of, encoded])
@pytest.mark.parametrize("length", EDGES)
def test_entries_when_read_in_any_way_are_the_list(length: int, make: Any) -> None:
    """Length, items from both ends, slices, iteration, iteration from anywhere, membership."""
    plain = messages(length)

    assert len(make(plain)) == length
    assert list(make(plain)) == plain
    assert list(reversed(make(plain))) == plain[::-1]
    entries = make(plain)
    for index in {0, 1, length // 2, 254, 255, 256, 257, 511, 512, length - 1} & {*range(length)}:
        assert entries[index] == plain[index]
        assert entries[index - length] == plain[index]
        assert list(make(plain).iterate_from(index)) == plain[index:]
        assert list(make(plain)[index:]) == plain[index:]
        assert list(make(plain)[:index]) == plain[:index]
    assert list(make(plain).iterate_from(length)) == []
    assert list(make(plain)[::-3]) == plain[::-3]
    for beyond in (length, -length - 1, length + CHUNK_LENGTH):
        with pytest.raises(IndexError):
            entries[beyond]


@pytest.mark.parametrize("make", [entries_of, encoded])
@pytest.mark.parametrize("length", EDGES)
def test_entries_when_searched_by_seq_find_what_a_list_finds(length: int, make: Any) -> None:
    """Every seq that is there, every one between, before and after."""
    plain = messages(length)
    entries = make(plain)
    by_seq = {each.seq: each for each in plain}
    seqs = list(by_seq)

    for seq in {
        *range(-1, 6),
        *range(500, 520),
        *range(1016, 1032),
        2 * length,
        2 * length + 1,
        10**9,
    }:
        assert entries.at_seq(seq) == by_seq.get(seq)
        assert entries.index_after(seq) == bisect_right(seqs, seq)


@pytest.mark.parametrize("make", [entries_of, encoded])
@pytest.mark.parametrize(
    ("length", "keep"),
    [(length, keep) for length in EDGES for keep in EDGES if keep <= length],
)
def test_entries_when_truncated_go_on_from_there(keep: int, length: int, make: Any) -> None:
    """Cut at, before and after the end of a chunk, then written to again."""
    plain = messages(length)
    entries = make(plain)
    before = entries.copy()

    entries.truncate(keep)

    assert list(entries) == plain[:keep]
    assert len(entries) == keep
    entries.append(message(9_001))
    entries.append(message(9_002))
    assert list(entries) == [*plain[:keep], message(9_001), message(9_002)]
    assert entries.index_after(9_001) == keep + 1
    assert list(before) == plain


@pytest.mark.parametrize("length", [1, 255, 256, 257, 512, 513])
def test_copies_when_written_to_do_not_show_in_each_other(length: int) -> None:
    """Copy on write, both ways, also of a copy of a copy."""
    plain = messages(length)
    first = entries_of(plain)
    second = first.copy()
    third = second.copy()
    other = message(plain[-1].seq, "other")

    first.replace(length - 1, other)
    second.append(message(9_001))
    third.replace(0, message(plain[0].seq, "third"))

    assert list(first) == [*plain[:-1], other]
    assert list(second) == [*plain, message(9_001)]
    assert list(third) == [message(plain[0].seq, "third"), *plain[1:]]


def test_copy_when_made_shares_chunks_until_one_is_written_to() -> None:
    """A copy of 10,000 messages costs 40 references, and a write one chunk."""
    entries = entries_of(messages(10_000))

    copy = entries.copy()
    copy.replace(300, message(602, "other"))

    same = [mine is theirs for mine, theirs in zip(entries.chunks, copy.chunks, strict=True)]
    assert same.count(False) == 1
    assert same[1] is False


def test_chunks_when_encoded_are_decoded_only_where_someone_looks() -> None:
    """The end of a long session is read without touching its beginning."""
    plain = messages(3 * CHUNK_LENGTH)
    entries = encoded(plain)
    unreadable = Chunk(None, encoded=b"\xc1", first_seq=2, count=CHUNK_LENGTH)
    entries.chunks[0] = unreadable

    assert len(entries) == len(plain)
    assert entries[-1] == plain[-1]
    assert entries[CHUNK_LENGTH] == plain[CHUNK_LENGTH]
    assert entries.at_seq(plain[-1].seq) == plain[-1]
    assert entries.index_after(plain[600].seq) == 601
    assert list(entries.iterate_from(300)) == plain[300:]
    entries.append(message(9_001))
    entries.copy().replace(700, message(1402, "other"))
    entries.truncate(CHUNK_LENGTH + 5)
    assert len(entries) == CHUNK_LENGTH + 5
    with pytest.raises(msgspec.DecodeError):
        list(entries)


def test_chunk_when_encoded_and_decoded_has_the_same_messages() -> None:
    """Every field survives a snapshot, times to the microsecond, integers to 64 bits."""
    full = Message(
        message_id="m\0",
        seq=2**62,
        role="assistant",
        content=[{"type": "text", "text": "👩‍👩‍👧", "n": [1, 1.0, -0.0, None, True, 2**63 - 1]}],
        agent="planner",
        name="n",
        model="m",
        reasoning="r",
        tool_calls=[ToolCall(id="c", name="look", arguments="{}")],
        tool_call_id="c",
        token_count=5,
        usage=Usage(input_tokens=2**40),
        finish_reason="stop",
        interrupt_reason="x",
        metadata={"": {"": []}},
        native={"deep": [[[[]]]]},
        opening_metadata={},
        status="interrupted",
        recorded_at=BEGIN.replace(microsecond=1),
        closed_seq=2**62 + 1,
        retracted_seq=2**62 + 2,
    )
    assert {name for name in Message.__struct_fields__ if not getattr(full, name)} == {
        "opening_metadata"
    }, "a new field gets a line above"

    decoded = Chunk(None, encoded=Chunk([full, message(2**62 + 5)]).encode())

    assert decoded.items == [full, message(2**62 + 5)]
    assert repr(decoded.items[0].content) == repr(full.content)
    assert decoded.items[0].opening_metadata == {}


def test_chunk_when_written_to_forgets_its_encoded_form_and_its_stored_copy() -> None:
    """A snapshot must never refer to a stored chunk that has other messages."""
    plain = messages(CHUNK_LENGTH + 1)
    entries = encoded(plain)

    entries.replace(3, message(8, "other"))

    first, last = entries.chunks
    assert first.stored_as == 0
    assert last.stored_as == CHUNK_LENGTH + 1
    assert Chunk(None, encoded=first.encode()).items[3] == message(8, "other")
    entries.append(message(9_001))
    assert entries.chunks[1].stored_as == 0
    assert Chunk(None, encoded=entries.chunks[1].encode()).items == [plain[-1], message(9_001)]


def known_by_key(plain: list[Message], loaded: set[int]) -> Entries:
    """The same messages as a restored snapshot has them: of full chunks most are but a key."""
    entries = encoded(plain)
    for number, chunk in enumerate(entries.chunks):
        if number not in loaded and chunk.count == CHUNK_LENGTH:
            entries.chunks[number] = Chunk(
                None, first_seq=chunk.first_seq, count=chunk.count, stored_as=chunk.stored_as
            )
    return entries


@pytest.mark.parametrize("length", [256, 512, 1000, 1024])
def test_chunks_when_not_loaded_are_named_by_who_needs_them(length: int) -> None:
    """`missing` names chunks of certain messages and of all behind a seq: those are enough."""
    plain = messages(length)
    last = plain[-1].seq
    for seqs in ([], [2], [512], [514], [3, 700, last], [0, -1, last + 5]):
        for after in (0, 1, 511, 512, 513, 514, 1023, last - 1, last, last + 5):
            entries = known_by_key(plain, set())
            for chunk in entries.missing(seqs, after):
                place = entries.chunks.index(chunk)
                chunk.load(Chunk(plain[place * CHUNK_LENGTH :][:CHUNK_LENGTH]).encode())

            assert entries.missing(seqs, after) == []
            found = [entries.at_seq(seq) for seq in seqs]
            assert found == [next((e for e in plain if e.seq == seq), None) for seq in seqs]
            behind = list(entries.iterate_from(entries.index_after(after)))
            assert behind == [each for each in plain if each.seq > after]


def test_chunk_when_not_loaded_says_which_one_it_is() -> None:
    """Whoever looks inside too early gets the key; length and appending need no messages."""
    entries = known_by_key(messages(600), {1})

    assert len(entries) == 600
    assert entries[300] == message(602)
    entries.append(message(9_001))
    assert entries[-1] == message(9_001)
    with pytest.raises(ChunkMissing) as caught:
        entries[3]
    assert caught.value.key == 1
    assert [chunk.loaded for chunk in entries.chunks] == [False, True, True]


def test_chunk_when_it_is_ones_own_is_written_to_in_place() -> None:
    """Many appends copy a chunk once, and its encoded form is always that of now."""
    entries = entries_of(messages(3)).copy()
    entries.append(message(7))
    chunk = entries.chunks[0]
    chunk.encode()

    entries.append(message(8))
    entries.replace(0, message(2, "other"))

    assert entries.chunks[0] is chunk
    assert Chunk(None, encoded=chunk.encode()).items == list(entries)


@given(st.lists(st.sampled_from(EDGES[:-1]), max_size=6))
def test_entries_when_truncated_over_and_over_are_the_list(lengths: list[int]) -> None:
    """Grown and cut to any lengths in turn."""
    plain: list[Message] = []
    entries = Entries()
    for length in lengths:
        while len(plain) < length:
            each = message((plain[-1].seq if plain else 0) + 1)
            plain.append(each)
            entries.append(each)
        del plain[length:]
        entries.truncate(length)

        assert list(entries) == plain
        assert entries.index_after(length) == length


class EntriesAgainstLists(RuleBasedStateMachine):
    """Several sequences, copies of one another, written to at random; lists are the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[Entries, list[Message]]] = [(Entries(), [])]
        self.seq = 0

    def chosen(self, which: int) -> tuple[Entries, list[Message]]:
        """One of the sequences, with its list."""
        return self.pairs[which % len(self.pairs)]

    @rule(which=st.integers(0, 7), count=st.sampled_from((1, 2, 100, 255, 256, 257)))
    def append(self, which: int, count: int) -> None:
        entries, plain = self.chosen(which)
        for _ in range(count):
            self.seq += 1
            assert entries.append(message(self.seq)) == len(plain)
            plain.append(message(self.seq))

    @rule(which=st.integers(0, 7))
    def copy(self, which: int) -> None:
        entries, plain = self.chosen(which)
        if len(self.pairs) < 8:
            self.pairs.append((entries.copy(), list(plain)))

    @rule(which=st.integers(0, 7))
    def snapshot(self, which: int) -> None:
        """Replace a sequence by what comes back from its snapshot."""
        place = which % len(self.pairs)
        _, plain = self.pairs[place]
        self.pairs[place] = (encoded(plain), plain)

    @rule(which=st.integers(0, 7), place=st.integers(0, 2000))
    def replace(self, which: int, place: int) -> None:
        entries, plain = self.chosen(which)
        if plain:
            index = place % len(plain)
            other = message(plain[index].seq, f"{place}")
            entries.replace(index, other)
            plain[index] = other

    @rule(which=st.integers(0, 7), length=st.integers(0, 2000))
    def truncate(self, which: int, length: int) -> None:
        entries, plain = self.chosen(which)
        keep = length % (len(plain) + 1)
        entries.truncate(keep)
        del plain[keep:]

    @rule(which=st.integers(0, 7), seq=st.integers(-1, 2000))
    def search(self, which: int, seq: int) -> None:
        entries, plain = self.chosen(which)
        seqs = [each.seq for each in plain]
        found = bisect_right(seqs, seq)
        assert entries.index_after(seq) == found
        assert entries.at_seq(seq) == (plain[found - 1] if seq in seqs else None)

    @rule(which=st.integers(0, 7), place=st.integers(0, 2000))
    def look(self, which: int, place: int) -> None:
        entries, plain = self.chosen(which)
        if plain:
            index = place % len(plain)
            assert entries[index] == plain[index]
            assert list(entries.iterate_from(index)) == plain[index:]

    @invariant()
    def lengths_are_right(self) -> None:
        for entries, plain in self.pairs:
            assert len(entries) == len(plain)
            assert all(chunk.count == CHUNK_LENGTH for chunk in entries.chunks[:-1])
            assert not entries.chunks or entries.chunks[-1].count

    def teardown(self) -> None:
        for entries, plain in self.pairs:
            assert list(entries) == plain


TestEntriesAgainstLists = EntriesAgainstLists.TestCase
TestEntriesAgainstLists.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

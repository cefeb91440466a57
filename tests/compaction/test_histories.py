"""What holds of compactions whatever was said before and happens in between."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from eventlog import EventLogError, rendering
from eventlog import events as ev
from eventlog.compaction import committing, selection
from eventlog.compaction.counts import TokenCount
from eventlog.integrations.transcripts import read_transcript, resolve
from tests.compaction.conversation import STEPS, Steps, open_conversation, steps
from tests.integrations.conftest import every_sample

BATCH = 40
"""Events of a transcript that are appended at once, between other things."""
IN_BETWEEN = tuple(each for each in STEPS if each not in ("clear", "fork", "begin", "end"))


async def live(what: Steps) -> int:
    """Let all of it happen; how many compactions came about."""
    async with AsyncExitStack() as stack:
        conversation = await open_conversation(stack)
        for name, choice in what:
            await conversation.step(name, choice)
        await conversation.finish()
        return conversation.made


@given(steps())
def test_session_when_compacted_between_anything_else_keeps_all_promises(what: Steps) -> None:
    """Calls keep their outputs, ranges their order, the past its contexts, events their bytes."""
    asyncio.run(live(what))


def as_they_are(seqs: Any, _: Any) -> set[int]:
    """Without what belongs to them."""
    return set(seqs)


def by_number(messages: Any, state: Any, calls: Any, newest_count: int, covered_seq: int) -> int:
    """A cut that looks at nothing but the policy."""
    return len(messages) - newest_count


@pytest.mark.parametrize(
    ("module", "name", "without"),
    [
        (selection, "_cut", by_number),
        (selection, "together", as_they_are),
        (selection, "_unfinished_count", lambda *_: 0),
        (selection, "INSTRUCTING", ()),
        (selection, "as_shown", list),
        (selection, "basis_of", lambda _: 0),
        (rendering, "outputs_of", lambda _: {}),
        (rendering, "_late_output_dict", rendering.message_dict),
        (committing, "check_summary", lambda *_: TokenCount(0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_session_when_a_protection_is_missing_breaks_a_promise(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, without: Any
) -> None:
    """The controls: without each of them the test above fails."""
    monkeypatch.setattr(module, name, without)

    @settings(max_examples=1_000, phases=[Phase.generate], report_multiple_bugs=False)
    @given(steps())
    def check(what: Steps) -> None:
        asyncio.run(live(what))

    with pytest.raises((AssertionError, EventLogError)):
        check()


@pytest.mark.parametrize("path", every_sample(), ids=lambda path: path.stem)
def test_transcript_when_compacted_while_it_grows_keeps_all_promises(path: Path) -> None:
    """What agents really said and did, with rewinds, pins, undone summaries in between."""

    @settings(max_examples=3)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        asyncio.run(live_through(path, data))

    check()


async def live_through(path: Path, data: st.DataObject) -> None:
    """Append a transcript piece by piece, and let other things happen in between."""
    events = resolve(read_transcript(path), first_seq=2)
    said = [each for each in events if isinstance(each, ev.MessageAdded)]
    async with AsyncExitStack() as stack:
        conversation = await open_conversation(stack)
        for begin in range(0, len(said), BATCH):
            await conversation.session.append(said[begin : begin + BATCH])
            await conversation.look()
            for name, choice in data.draw(steps(12, IN_BETWEEN)):
                await conversation.step(name, choice)
            await conversation.step("compact", data.draw(st.integers(0, 5)))
        await conversation.finish()


@pytest.mark.parametrize("path", every_sample(), ids=lambda path: path.stem)
def test_transcript_when_it_was_compacted_by_others_goes_on_with_ours(path: Path) -> None:
    """Imported with the compactions and rewinds of the program that wrote it, then compacted."""

    @settings(max_examples=3)
    @given(steps(20, IN_BETWEEN), st.integers(0, 5))
    def check(what: Steps, choice: int) -> None:
        asyncio.run(go_on(path, [*what, ("compact", choice)]))

    check()


async def go_on(path: Path, what: Steps) -> None:
    """Import a whole transcript, and let things happen then."""
    async with AsyncExitStack() as stack:
        conversation = await open_conversation(stack)
        for each in resolve(read_transcript(path), first_seq=2):
            done = await conversation.session.append(each)
            conversation.own_seq = done.last_seq
        await conversation.look()
        for name, choice in what:
            await conversation.step(name, choice)
        await conversation.finish()

"""The conversation of `eventlog demo --compact`: as much of a transcript as makes a context due.

Only messages are taken, each whole. What providers once said of sizes is left out, because it was
about requests with much more in them; so everything is counted, before as well as after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from eventlog import Session
from eventlog import events as ev
from eventlog.compaction.tokens import count_dicts
from eventlog.errors import InvalidRequest
from eventlog.integrations.transcripts import Transcript
from workers.commands.look import plain_text

MESSAGES_MIN: Final = 6
TOKENS_MIN: Final = 600
"""A transcript with less is too short to have an older part that could be summarised."""
THRESHOLD_SHARE_MAX: Final = 0.8
"""Of a whole transcript: where a shorter one becomes due."""


class Script(msgspec.Struct, frozen=True):
    """What is going to be said, and from how many tokens on the context is due."""

    steps: list[list[ev.MessageAdded]]
    """The first goes just over the threshold; then one for each message, its tools' outputs with
    it. After none of them a tool's output is waited for, but perhaps after the last."""
    threshold: int


def script_of(transcript: Transcript, threshold: int) -> Script:
    """The messages of a transcript, in steps; a short transcript lowers the threshold.

    Raises `InvalidRequest` for one that is too short for a compaction.
    """
    messages = list(_messages(transcript))
    sizes = [_tokens(each) for each in messages]
    if len(messages) < MESSAGES_MIN or sum(sizes) < TOKENS_MIN:
        raise InvalidRequest(
            f"the transcript has {len(messages)} messages of {sum(sizes):,} tokens, too little "
            f"for a compaction; give one with {MESSAGES_MIN} messages and {TOKENS_MIN:,} tokens"
        )
    threshold = min(threshold, int(sum(sizes) * THRESHOLD_SHARE_MAX))
    steps: list[list[ev.MessageAdded]] = [[]]
    tokens = 0
    waiting: set[str] = set()
    for message, size in zip(messages, sizes, strict=True):
        steps[-1].append(message)
        tokens += size
        waiting |= {call.id for call in message.tool_calls}
        waiting.discard(message.tool_call_id or "")
        if tokens > threshold and not waiting:
            steps.append([])
    return Script([step for step in steps if step], threshold)


async def feed(session: Session, messages: Iterable[ev.MessageAdded]) -> None:
    """Append all of it, each message an event of its own."""
    for each in messages:
        await session.append(each)


def _messages(transcript: Transcript) -> Iterator[ev.MessageAdded]:
    for each in transcript.events:
        match each.event:
            case ev.MessageAdded() as added:
                yield msgspec.structs.replace(added, message_id="", usage=None, token_count=None)
            case ev.MessageCompleted() | ev.MessageInterrupted() as ended:  # an export of ours
                yield ev.MessageAdded(
                    role="assistant",
                    content=ended.content,
                    reasoning=ended.reasoning,
                    tool_calls=ended.tool_calls,
                )
            case _:
                continue


def _tokens(message: ev.MessageAdded) -> int:
    shown = {
        "role": message.role,
        "content": plain_text(message.content),
        "tool_calls": [
            {"function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ],
    }
    return count_dicts([shown]).tokens

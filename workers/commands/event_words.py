"""Events about the context of a model as a few words, for those who watch a session live."""

from __future__ import annotations

from collections.abc import Mapping

from eventlog import events as ev


def words_of(event: ev.Event, calls: Mapping[str, str]) -> str:
    """What happened, not yet safe for a terminal; empty: of this event there are no words.

    `calls` are the names of tools by call id.
    """
    match event:
        case ev.CompactionRequested():
            return f"a summary is asked for{_behind(event.instructions)}"
        case ev.CompactionReverted():
            return f"the summary of #{event.compaction_seq} is taken back"
        case ev.CompactionPolicySet(policy=None):
            return "by the policy of the user, or of the log"
        case ev.CompactionPolicySet(policy=policy):
            return f"the session's own policy{_behind(policy.name if policy else None)}"
        case ev.MessagePinned():
            fate = "stays in the context" if event.pinned else "is no longer pinned"
            return f"message {event.message_id} {fate}"
        case ev.FactPinned(text=None):
            return f"{event.name} is removed"
        case ev.FactPinned():
            return f"{event.name}: {event.text}"
        case ev.ToolCallClosed():
            called = calls.get(event.tool_call_id) or event.tool_call_id
            return f"{called} is not waited for any more{_behind(event.reason)}"
        case _:
            return ""


def _behind(more: str | None) -> str:
    return f": {more}" if more else ""

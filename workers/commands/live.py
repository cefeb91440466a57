"""A conversation on the terminal while it happens: events in, text out, increments as they come."""

from __future__ import annotations

from typing import Final, assert_never

from rich.console import Console
from rich.text import Text

from eventlog import RecordedEvent
from eventlog import events as ev
from workers.commands import look
from workers.commands.event_words import words_of
from workers.commands.flow import CutLine, Flow
from workers.terminal import safe_json, safe_line

OUTPUT_LINES: Final = 3
REASONING_LINES: Final = 4
SUMMARY_LINES: Final = 3


class LiveView:
    """Prints the events of one session in the order they are given.

    `brief` leaves out what is no part of the conversation, and cuts reasoning short.
    """

    def __init__(self, console: Console, *, brief: bool = False) -> None:
        self._console = console
        self._brief = brief
        self._flow: Flow | CutLine | None = None
        self._channel: tuple[str, str, str | None] | None = None
        """Message, channel and call that the flow shows."""
        self._spoken = ""
        """Message whose heading stands last."""
        self._started: dict[str, ev.MessageStarted] = {}
        self._calls: dict[str, str] = {}
        """Names of tools by call id, for their outputs."""
        self._streamed: set[str | None] = set()
        """Calls whose arguments stand there already."""

    def show(self, recorded: RecordedEvent) -> None:
        """Print one event."""
        match recorded.event:
            case ev.TokenAppended() as event:
                self._increment(event.message_id, event.channel, event.tool_call_id, event.text)
            case ev.TokensAppended() as event:
                text = "".join(event.texts)
                self._increment(event.message_id, event.channel, event.tool_call_id, text)
            case ev.MessageAdded() as event:
                self._added(recorded, event)
            case ev.MessageStarted() as event:
                self._started[event.message_id] = event
                self._head(event, recorded)
            case ev.MessageCompleted() as event:
                self._ended(event.message_id, event.tool_calls)
            case ev.MessageInterrupted() as event:
                self._ended(event.message_id, [])
                why = safe_line(event.reason or "no reason given")
                self._console.print(Text(f"  ⨯ interrupted: {why}", look.WRONG))
            case ev.CompactionCompleted() as event:
                self.note(f"compaction: events {event.from_seq} to {event.to_seq} are summarised")
                look.print_wrapped(self._console, event.summary, look.QUIET, lines=SUMMARY_LINES)
            case ev.CompactionFailed(kind=kind, attempts=attempts, reason=reason):
                self.note(f"no summary: {kind or 'failed'}, attempt {attempts}", look.WRONG)
                look.print_wrapped(self._console, reason, look.QUIET, lines=SUMMARY_LINES)
            case event:
                if not self._brief:
                    self._other(recorded, event)

    def note(self, title: str, style: str = look.UNDER_WAY) -> None:
        """A line of its own between two pieces of the conversation."""
        self.pause()
        self._spoken = ""
        self._console.print()
        self._console.print(look.divider(title, style))

    def pause(self) -> None:
        """End the line that is being written."""
        if self._flow is not None:
            self._flow.end()
        self._flow = self._channel = None

    def _increment(self, message_id: str, channel: ev.Channel, call: str | None, text: str) -> None:
        if self._channel != (message_id, channel, call):
            self.pause()
            continues = self._spoken != message_id
            if continues:
                started = self._started.get(message_id) or ev.MessageStarted(message_id=message_id)
                self._head(started, None)
            self._channel = (message_id, channel, call)
            if channel == "tool-arguments":
                self._streamed.add(call)
            self._flow = self._flow_for(channel, continues=continues)
        assert self._flow is not None
        self._flow.write(text)

    def _flow_for(self, channel: ev.Channel, *, continues: bool) -> Flow | CutLine:
        match channel:
            case "text":
                return Flow(self._console, continues=continues)
            case "reasoning":
                lines = REASONING_LINES if self._brief else None
                return Flow(self._console, look.REASONING, lines_max=lines, continues=continues)
            case "tool-arguments":
                return CutLine(self._console, look.QUIET, mark="⋯ ")
            case _:
                assert_never(channel)

    def _head(self, started: ev.MessageStarted, recorded: RecordedEvent | None) -> None:
        self.pause()
        self._console.print()
        title = look.heading(
            started.role,
            started.agent,
            started.name,
            None if recorded else "continues",
            seq=recorded.seq if recorded else None,
            at=recorded.recorded_at if recorded else None,
        )
        self._console.print(title)
        self._spoken = started.message_id

    def _ended(self, message_id: str, calls: list[ev.ToolCall]) -> None:
        if calls or self._channel is None or self._channel[0] == message_id:
            self.pause()
        self._started.pop(message_id, None)
        self._called(calls)

    def _added(self, recorded: RecordedEvent, event: ev.MessageAdded) -> None:
        self.pause()
        self._spoken = ""
        names = [event.agent, event.name]
        if event.role == "tool":
            names = [self._calls.get(event.tool_call_id or "") or event.name]
        self._console.print()
        at = recorded.recorded_at
        self._console.print(look.heading(event.role, *names, seq=recorded.seq, at=at))
        if event.reasoning:
            look.print_wrapped(
                self._console, event.reasoning, look.REASONING, lines=REASONING_LINES
            )
        if text := look.plain_text(event.content):
            if event.role == "tool":
                look.print_cut(self._console, text, lines=OUTPUT_LINES)
            elif self._brief:
                look.print_wrapped(self._console, text, "", lines=OUTPUT_LINES)
            else:
                look.print_prose(self._console, text)
        self._called(event.tool_calls)

    def _called(self, calls: list[ev.ToolCall]) -> None:
        for call in calls:
            self._calls[call.id] = call.name
            arguments = "" if call.id in self._streamed else call.arguments
            self._streamed.discard(call.id)
            shown = ev.ToolCall(id=call.id, name=call.name, arguments=arguments)
            self._console.print(look.call_line(shown, self._console.width), soft_wrap=True)

    def _other(self, recorded: RecordedEvent, event: ev.Event) -> None:
        """An event that is no message, as one line."""
        self.pause()
        self._spoken = ""
        left = self._console.width - 24
        line = Text(f"· {safe_line(ev.tag_of(event), 40)}", look.QUIET)
        if words := words_of(event, self._calls):
            line.append(f" {safe_line(words, max(10, left))}")
        elif not isinstance(event, ev.Unrecognized):
            line.append(f" {safe_line(safe_json(event), max(10, left))}")
        line.append(f" #{recorded.seq}")
        self._console.print(line, soft_wrap=True)

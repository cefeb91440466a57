"""An agent that can be killed at any moment and goes on where the log says it was.

    python examples/agent_loop.py

The log is the agent's only memory. Each turn it looks at the conversation, decides what comes next
(generate, call a tool, or nothing), does that, and appends the result. What was appended is never
done again; what was not appended did not happen. The model here is a function that plays its part,
with a pause between tokens; put your own streaming call in its place.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from eventlog import EventLog, MessageAdded, Session, ToolCall, WrongExpectedSeq
from eventlog.telemetry import configure_logging

KEY = f"agent-loop-{uuid.uuid4()}"
QUESTION = "How warm is it in Paris?"


class PowerCut(Exception):
    """Our stand-in for SIGKILL, a deployment, or a lost machine."""


async def model(context: list[dict[str, Any]]) -> AsyncIterator[str | ToolCall]:
    """A streaming model: asks for a tool first, and answers when it has the result."""
    await asyncio.sleep(0)
    if context[-1]["role"] != "tool":
        yield ToolCall(id="call-1", name="temperature", arguments=json.dumps({"city": "Paris"}))
        return
    for token in ["It ", "is ", context[-1]["content"], " degrees ", "in ", "Paris."]:
        await asyncio.sleep(0.02)
        yield token


async def call_tool(call: ToolCall) -> str:
    """The only tool there is."""
    return "21" if json.loads(call.arguments)["city"] == "Paris" else "?"


async def run_agent(session: Session, *, cut_after_tokens: int | None = None) -> str:
    """Work on the session until there is nothing left to do; returns the final answer."""
    # A process that died here before may have left a reply open. Closing it keeps what was seen,
    # and fences the old process off, should it still be alive: its next write fails.
    await session.interrupt(reason="agent restarted")
    while True:
        state = await session.replay()
        last = state.messages[-1]
        answered = {message.tool_call_id for message in state.messages}
        open_calls = [
            call
            for message in state.messages
            for call in message.tool_calls
            if message.status == "complete" and call.id not in answered
        ]
        if open_calls:
            # Whoever appends first wins. If someone else works on this session too, `expected_seq`
            # refuses our result, and we look again at what there is to do.
            output = await call_tool(open_calls[0])
            result = MessageAdded(role="tool", content=output, tool_call_id=open_calls[0].id)
            try:
                await session.append(result, expected_seq=state.seq)
            except WrongExpectedSeq:
                continue
        elif last.role == "assistant" and last.status == "complete":
            return str(last.content)
        else:
            await generate(session, cut_after_tokens)


async def generate(session: Session, cut_after_tokens: int | None) -> None:
    """One reply of the model. An interrupted one before it stays in the log, and is begun anew."""
    context = await session.context()
    while context and context[-1]["role"] == "assistant":
        context.pop()  # half a sentence that nobody finished
    async with session.reply(agent="weather", model="pretend") as reply:
        calls: list[ToolCall] = []
        count = 0
        async for piece in model(context):
            if isinstance(piece, ToolCall):
                calls.append(piece)
                continue
            await reply.write(piece)
            count += 1
            if count == cut_after_tokens:
                raise PowerCut
        reply.finish(tool_calls=calls, finish_reason="tool_calls" if calls else "stop")


async def main() -> None:
    async with EventLog.open() as log:
        session = await log.create_session(key=KEY, user_id="ada")
        # An id of our own makes this once-only: asking again after a crash adds nothing.
        question_id = uuid.uuid5(session.id, "question")
        await session.append(MessageAdded(role="user", content=QUESTION), event_id=question_id)
        try:
            await run_agent(session, cut_after_tokens=3)
        except PowerCut:
            print("the agent died in mid-sentence")

    async with EventLog.open() as log:  # another process, another day
        session = await log.session(KEY)
        await session.append(MessageAdded(role="user", content=QUESTION), event_id=question_id)
        print(f"the answer: {await run_agent(session)}")
        for message in (await session.replay()).messages:
            calls = [call.name for call in message.tool_calls]
            print(f"  #{message.seq} {message.role} {message.status}: {message.content!r} {calls}")


if __name__ == "__main__":
    configure_logging("warning")
    asyncio.run(main())

"""An event-sourced conversation log for LLM agents, on Postgres and Redis Streams.

async with EventLog.open() as log:
    session = await log.create_session(key="chat-42", user_id="ada")
    await session.append(MessageAdded(role="user", content="Hi"))
    async with session.reply(agent="planner") as reply:
        await reply.write("Hello!")
    async for event in session.subscribe(after=0):
        ...
"""

from eventlog.entries import Message
from eventlog.envelope import ANY, Appended, RecordedEvent
from eventlog.errors import (
    EventIdReused,
    EventLogError,
    InvalidEvent,
    InvalidRequest,
    InvalidSetting,
    MessageFenced,
    OutcomeUnknown,
    Refused,
    SchemaMismatch,
    ServerStartFailed,
    SessionExists,
    SessionNotFound,
    SetupError,
    Unavailable,
    UnsafeServer,
    WrongExpectedSeq,
)
from eventlog.errors import SessionClosed as SessionClosedError
from eventlog.errors import SessionDeleted as SessionDeletedError
from eventlog.events import (
    AgentActivated,
    AgentHandedOff,
    CompactionCompleted,
    CompactionFailed,
    CompactionRequested,
    CompactionReverted,
    Custom,
    Event,
    MessageAdded,
    MessageCompleted,
    MessageInterrupted,
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
    SessionRewound,
    SessionUpdated,
    TokenAppended,
    TokensAppended,
    ToolCall,
    Unrecognized,
    Usage,
)
from eventlog.folding import evolve, fold, initial
from eventlog.log import EventLog
from eventlog.reply import Reply
from eventlog.session import Session
from eventlog.settings import Settings
from eventlog.state import Handoff, SessionState
from eventlog.subscription import SessionSubscription, UserSubscription
from eventlog.views import SessionPage, SessionView

__all__ = [
    "ANY",
    "AgentActivated",
    "AgentHandedOff",
    "Appended",
    "CompactionCompleted",
    "CompactionFailed",
    "CompactionRequested",
    "CompactionReverted",
    "Custom",
    "Event",
    "EventIdReused",
    "EventLog",
    "EventLogError",
    "Handoff",
    "InvalidEvent",
    "InvalidRequest",
    "InvalidSetting",
    "Message",
    "MessageAdded",
    "MessageCompleted",
    "MessageFenced",
    "MessageInterrupted",
    "MessageRetracted",
    "MessageStarted",
    "OutcomeUnknown",
    "RecordedEvent",
    "Refused",
    "Reply",
    "RunFailed",
    "RunFinished",
    "RunStarted",
    "RunStopRequested",
    "SchemaMismatch",
    "ScratchpadWritten",
    "ServerStartFailed",
    "Session",
    "SessionCleared",
    "SessionClosed",
    "SessionClosedError",
    "SessionCreated",
    "SessionDeleted",
    "SessionDeletedError",
    "SessionExists",
    "SessionNotFound",
    "SessionPage",
    "SessionRewound",
    "SessionState",
    "SessionSubscription",
    "SessionUpdated",
    "SessionView",
    "Settings",
    "SetupError",
    "TokenAppended",
    "TokensAppended",
    "ToolCall",
    "Unavailable",
    "Unrecognized",
    "UnsafeServer",
    "Usage",
    "UserSubscription",
    "WrongExpectedSeq",
    "evolve",
    "fold",
    "initial",
]

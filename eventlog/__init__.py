"""An event-sourced conversation log for LLM agents, on Postgres and Redis Streams.

async with EventLog.open() as log:
    session = await log.create_session(key="chat-42", user_id="ada")
    await session.append(MessageAdded(role="user", content="Hi"))
    async with session.reply(agent="planner") as reply:
        await reply.write("Hello!")
    async for event in session.subscribe(after=0):
        ...
"""

from eventlog.compaction.measure import ContextTokens
from eventlog.compaction.policy import PRESETS, CompactionPolicy
from eventlog.compaction.selection import NothingToDo, Plan
from eventlog.compaction.summarizer import Material, Summarizer, Summary, SummaryFailed
from eventlog.entries import Message
from eventlog.envelope import ANY, Appended, RecordedEvent
from eventlog.erasing.record import Erasure
from eventlog.errors import (
    CompactionPending,
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
from eventlog.errors import SessionErased as SessionErasedError
from eventlog.events import (
    AgentActivated,
    AgentHandedOff,
    CompactionCompleted,
    CompactionFailed,
    CompactionPolicySet,
    CompactionRequested,
    CompactionReverted,
    Custom,
    Erased,
    Event,
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
    TokenAppended,
    TokensAppended,
    ToolCall,
    ToolCallClosed,
    Unrecognized,
    Usage,
)
from eventlog.folding import evolve, fold, initial
from eventlog.log import EventLog
from eventlog.reading.found_messages import Hit, SearchPage
from eventlog.reading.message_pages import MessageView
from eventlog.reading.spending import UsageRow
from eventlog.reading.view_store import AgentsView
from eventlog.reply import Reply
from eventlog.runs import Run
from eventlog.search.snippets import Snippet
from eventlog.session import Session
from eventlog.settings import Settings
from eventlog.state import Compaction, Handoff, SessionState
from eventlog.subscription import SessionSubscription, UserSubscription
from eventlog.views import SessionPage, SessionView

__all__ = [
    "ANY",
    "PRESETS",
    "AgentActivated",
    "AgentHandedOff",
    "AgentsView",
    "Appended",
    "Compaction",
    "CompactionCompleted",
    "CompactionFailed",
    "CompactionPending",
    "CompactionPolicy",
    "CompactionPolicySet",
    "CompactionRequested",
    "CompactionReverted",
    "ContextTokens",
    "Custom",
    "Erased",
    "Erasure",
    "Event",
    "EventIdReused",
    "EventLog",
    "EventLogError",
    "FactPinned",
    "Handoff",
    "Hit",
    "InvalidEvent",
    "InvalidRequest",
    "InvalidSetting",
    "Material",
    "Message",
    "MessageAdded",
    "MessageCompleted",
    "MessageFenced",
    "MessageInterrupted",
    "MessagePinned",
    "MessageRetracted",
    "MessageStarted",
    "MessageView",
    "NothingToDo",
    "OutcomeUnknown",
    "Plan",
    "RecordedEvent",
    "Refused",
    "Reply",
    "Run",
    "RunFailed",
    "RunFinished",
    "RunStarted",
    "RunStopRequested",
    "SchemaMismatch",
    "ScratchpadWritten",
    "SearchPage",
    "ServerStartFailed",
    "Session",
    "SessionCleared",
    "SessionClosed",
    "SessionClosedError",
    "SessionCreated",
    "SessionDeleted",
    "SessionDeletedError",
    "SessionErasedError",
    "SessionExists",
    "SessionExpirySet",
    "SessionNotFound",
    "SessionPage",
    "SessionRewound",
    "SessionState",
    "SessionSubscription",
    "SessionUpdated",
    "SessionView",
    "Settings",
    "SetupError",
    "Snippet",
    "Summarizer",
    "Summary",
    "SummaryFailed",
    "TokenAppended",
    "TokensAppended",
    "ToolCall",
    "ToolCallClosed",
    "Unavailable",
    "Unrecognized",
    "UnsafeServer",
    "Usage",
    "UsageRow",
    "UserSubscription",
    "WrongExpectedSeq",
    "evolve",
    "fold",
    "initial",
]

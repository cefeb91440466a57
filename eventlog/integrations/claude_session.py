"""What a Claude Code transcript says about its session: id, title, working directory, versions.

A title is, in this order: the one a person gave, the one a model gave, a `summary` of this
session, the first thing a person asked for, a `summary` of another session. Older versions wrote
summaries of other sessions into a file. Whether the line that `leafUuid` names is in the file
tells, and that is known at its end.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any, Final

from eventlog.events import Custom, MessageAdded, SessionUpdated
from eventlog.integrations.assembly import Assembly, one_line
from eventlog.integrations.jsonl import Line, dict_of, id_of, parts_of, text_in, text_of

TITLE_RANKS: Final = (
    "custom-title",
    "ai-title",
    "summary",
    "first prompt",
    "first task of a subagent",
    "summary of another session",
)
NOT_A_PROMPT: Final = ("<", "Caveat:", "[Request interrupted")
"""How texts in `user` lines begin that no person typed."""
FACT_CHARS_MAX: Final = 1_000
"""Longer ones are cut; records have them whole."""
_TITLE_FIELDS: Final = {"custom-title": "customTitle", "ai-title": "aiTitle", "summary": "summary"}
_SESSION_FACTS: Final = {"cwd": "cwd", "gitBranch": "git_branch", "version": "cli_version"}

_FLAGS: Final = {
    "isMeta": "is_meta",
    "isSidechain": "is_sidechain",
    "isApiErrorMessage": "is_api_error",
    "isAbortedMidStream": "is_aborted",
    "isVisibleInTranscriptOnly": "is_transcript_only",
}
_FACTS: Final = {
    "uuid": "uuid",
    "parentUuid": "parent_uuid",
    "timestamp": "timestamp",
    "requestId": "request_id",
    "agentId": "agent_id",
}


def title_in(record: dict[str, Any]) -> str:
    """The title that a record sets; empty for records that set none."""
    field = _TITLE_FIELDS.get(text_of(record.get("type")))
    return text_of(record.get(field)).strip() if field else ""


class ClaudeSession:
    """The session so far; its titles become events of the assembly."""

    def __init__(self, assembly: Assembly, path: Path) -> None:
        self.assembly = assembly
        self.facts: dict[str, str] = {}
        self._session_id = path.stem
        self._titles: dict[str, str] = {}
        self._summaries: list[tuple[int, Line, str]] = []  # index of event, line, title
        self._agents: set[str] = set()  # agentId of every line that has a uuid; "": none

    @property
    def title(self) -> str | None:
        """The best title there is."""
        return next((self._titles[each] for each in TITLE_RANKS if each in self._titles), None)

    @property
    def key(self) -> str:
        """The session's id. A subagent's file has its session's id, so the agent's is added."""
        agent = self._agent
        return self._session_id if agent in self._session_id else f"{self._session_id}:{agent}"

    @property
    def metadata(self) -> dict[str, Any]:
        """What is worth knowing about the session."""
        agent = {"agent_id": self._agent, "parent_session": self._session_id}
        return {"source": "claude-code", **self.facts, **(agent if self._agent else {})}

    @property
    def _agent(self) -> str:
        """The subagent whose own file this is; empty for a session."""
        return next(iter(self._agents)) if len(self._agents) == 1 else ""

    def take_facts(self, record: dict[str, Any]) -> None:
        """Learn from a record. What comes first counts, but the id of the last: the file's own."""
        for field, name in _SESSION_FACTS.items():
            if value := text_of(record.get(field)):
                self.facts.setdefault(name, value[:FACT_CHARS_MAX])
        self._session_id = id_of(record.get("sessionId")) or self._session_id
        if id_of(record.get("uuid")):
            sidechain = record.get("isSidechain") is True
            self._agents.add(id_of(record.get("agentId")) if sidechain else "")

    def take_prompt(self, message: MessageAdded) -> None:
        """Learn from what a person wrote."""
        text = text_in(parts_of(message.content)).strip()
        if text and "is_meta" not in message.metadata and not text.startswith(NOT_A_PROMPT):
            side = "is_sidechain" in message.metadata
            self._titles.setdefault("first task of a subagent" if side else "first prompt", text)

    def take_title(self, index: int, line: Line, kind: str, title: str) -> None:
        """A record that sets a title was kept as the event with this index; count its line."""
        if kind == "summary":
            self._summaries.append((index, line, title))
            return
        self._titles[kind] = title
        if kind == "custom-title" or "custom-title" not in self._titles:
            self._retitle(index, title)
            self.assembly.count(kind, "session.updated")
        else:
            self.assembly.count(kind, "custom")

    def settle_summaries(self, uuids: Container[str]) -> None:
        """At the end of the file: summaries of this session set its title, unless it has one."""
        named = self._titles.keys() & {"custom-title", "ai-title"}
        for index, line, title in self._summaries:
            if not named and id_of(dict_of(line.record).get("leafUuid")) in uuids:
                self._retitle(index, title)
                self._titles["summary"] = title
                self.assembly.count("summary", "session.updated")
            else:
                self._titles.setdefault("summary of another session", title)
                self.assembly.count("summary", "custom")

    def _retitle(self, index: int, title: str) -> None:
        entry = self.assembly.entries[index]
        record = entry.event.data if isinstance(entry.event, Custom) else None
        entry.event = SessionUpdated(title=one_line(title), metadata={"title_record": record})


def metadata_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a message's metadata says about its first line."""
    facts = {
        name: text[:FACT_CHARS_MAX]
        for key, name in _FACTS.items()
        if (text := text_of(record.get(key)))
    }
    flags = {name: True for key, name in _FLAGS.items() if record.get(key) is True}
    return {"source": "claude-code", **facts, **flags}

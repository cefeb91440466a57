"""What a Codex rollout says about its session: id, title, working directory, versions, model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from eventlog.integrations.jsonl import dict_of, id_of, text_of

NOT_A_PROMPT: Final = ("<", "# AGENTS.md instructions")
"""How user messages begin that Codex wrote itself."""
FACT_CHARS_MAX: Final = 1_000
"""Longer ones are cut; the record has them whole."""
_FACTS: Final = {
    "cwd": "cwd",
    "cli_version": "cli_version",
    "originator": "originator",
    "model_provider": "model_provider",
    "forked_from_id": "forked_from",
    "parent_thread_id": "parent_thread",
}
_FILE_NAME: Final = re.compile(r"rollout-.*?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$")

_WORKING_DIRECTORY: Final = re.compile(
    r"<environment_context>.*?<cwd>(.{1,1000}?)</cwd>", re.DOTALL
)


class CodexSession:
    """The session so far. A fork repeats its parent's `session_meta`: the first one is its own."""

    def __init__(self, path: Path) -> None:
        named = _FILE_NAME.match(path.stem)
        self.key = named.group(1) if named else path.stem
        self.title: str | None = None
        self.model: str | None = None
        self._facts: dict[str, Any] | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What is worth knowing about the session."""
        model = {"model": self.model} if self.model else {}
        return {"source": "codex", **(self._facts or {}), **model}

    def take(self, kind: str, payload: dict[str, Any]) -> None:
        """Learn from a line that is no part of the conversation."""
        if kind == "turn_context":
            self.model = text_of(payload.get("model"))[:FACT_CHARS_MAX] or self.model
        if kind != "session_meta" or self._facts is not None:
            return
        self.key = id_of(payload.get("id")) or id_of(payload.get("session_id")) or self.key
        git = dict_of(payload.get("git"))
        facts = {name: text_of(payload.get(field)) for field, name in _FACTS.items()}
        facts["git_branch"] = text_of(git.get("branch"))
        facts["git_commit"] = text_of(git.get("commit_hash"))
        self._facts = {name: value[:FACT_CHARS_MAX] for name, value in facts.items() if value}

    def take_prompt(self, text: str) -> None:
        """Learn from a user message: the first prompt is the title until one is given."""
        if self._facts is not None and (found := _WORKING_DIRECTORY.search(text)):
            self._facts.setdefault("cwd", found.group(1))  # the oldest rollouts say it only here
        if self.title is None and text.strip() and not text.lstrip().startswith(NOT_A_PROMPT):
            self.title = text

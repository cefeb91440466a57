"""Who writes the summary of `eventlog demo --compact`.

local        the small model of `workers/local_model`, started for it
FILE.gguf    any other model in that format, on this machine
none         nobody: sentences of the conversation
NAME         this model, at the endpoint of the settings
not said     the model of the settings; none, when there is no key for one
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from eventlog import Settings, Summarizer
from eventlog.errors import InvalidSetting
from eventlog.settings import read_model_key
from workers.commands.opening import waiting
from workers.local_model import local_model
from workers.summariser.extractive import ExtractiveSummarizer
from workers.summariser.guarded import NO_MODEL, summarizer_of
from workers.summariser.model_summarizer import ModelSummarizer
from workers.terminal import safe_line

LOCAL: Final = "local"
MODEL_FILE_SUFFIX: Final = ".gguf"
TRANSCRIPT: Final = "claude_clean.jsonl"
"""The longest that comes with this program: 63 messages, 31 tool calls."""
TRANSCRIPT_LOCAL: Final = "claude_compacted.jsonl"
"""Its messages are shorter, so that a small model reads them at once."""
THRESHOLD: Final = 8_000
"""Tokens from which on the demo's context is due: a long conversation, and read in a moment."""
THRESHOLD_LOCAL: Final = 1_800
"""The same for a small model: it reads some hundred tokens a second, and should be asked once."""
LOCAL_SECONDS_MAX: Final = 600.0
"""Longest time for one of its answers, with other questions before it in the queue."""


class Author(msgspec.Struct, frozen=True, kw_only=True):
    """A summariser, and what to say of it."""

    summarizer: Summarizer
    words: str
    threshold: int = THRESHOLD
    transcript: str = TRANSCRIPT
    """What is played when nothing else is given."""
    is_model: bool = True


@asynccontextmanager
async def author_of(model: str | None, settings: Settings) -> AsyncIterator[Author]:
    """Whoever `--model` names. Raises `SetupError`: not installed, no key, no such file."""
    if model == LOCAL or (model or "").endswith(MODEL_FILE_SUFFIX):
        async with _local(None if model in (LOCAL, None) else Path(model)) as author:
            yield author
        return
    chosen = settings
    if model is not None:
        chosen = msgspec.structs.replace(settings, compaction_model=model)
    asked = summarizer_of(chosen, read_model_key())
    if asked is None:
        yield Author(
            summarizer=ExtractiveSummarizer(), words=_why_without(chosen, model), is_model=False
        )
        return
    async with aclosing(asked):
        yield Author(summarizer=asked, words=f"by {safe_line(chosen.compaction_model, 60)}")


@asynccontextmanager
async def _local(file: Path | None) -> AsyncIterator[Author]:
    async with AsyncExitStack() as stack:
        with waiting("loading the model …"):
            model = await stack.enter_async_context(local_model(file))
        summarizer = ModelSummarizer(
            model=model.model,
            key=model.api_key,
            base_url=model.base_url,
            window_tokens=model.window_tokens,
            timeout_seconds=LOCAL_SECONDS_MAX,
        )
        await stack.enter_async_context(aclosing(summarizer))
        words = f"by {safe_line(model.model, 60)}, on this machine, process {model.pid}"
        yield Author(
            summarizer=summarizer,
            words=words,
            threshold=THRESHOLD_LOCAL,
            transcript=TRANSCRIPT_LOCAL,
        )


def _why_without(settings: Settings, model: str | None) -> str:
    """Why no model is asked; a model that was asked for by name must be reachable."""
    if settings.compaction_model == NO_MODEL:
        return "without a model: sentences of the conversation"
    hint = "set EVENTLOG_COMPACTION_API_KEY or OPENAI_API_KEY, or EVENTLOG_COMPACTION_BASE_URL"
    if model is not None:
        raise InvalidSetting(f"there is no key for the model {model!r:.60}; {hint}")
    return f"there is no key for a model, so sentences of the conversation ({hint})"

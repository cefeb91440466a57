"""What `eventlog doctor` says of compaction: by which policy, and who writes the summaries."""

from __future__ import annotations

from eventlog import EventLog
from eventlog.errors import InvalidSetting
from eventlog.settings import read_model_key
from workers.commands.finding import Finding
from workers.commands.policy import find
from workers.summariser.guarded import summarizer_of
from workers.terminal import safe_line


async def compaction_finding(log: EventLog) -> Finding:
    """Whether the settings can be used. No model is asked: that would cost something."""
    settings = log.settings
    try:
        found = await find(log, None, None)
        summarizer = summarizer_of(settings, read_model_key())
        if summarizer is not None:
            await summarizer.aclose()
    except InvalidSetting as error:
        return Finding(what="compaction", state="fail", found=str(error), advice="set it anew")
    writer = "summaries are made without a model: there is no key for one, or none is wanted"
    if summarizer is not None:
        writer = f"summaries by {safe_line(settings.compaction_model, 60)}"
    policy = safe_line(found.policy.name, 40) or (
        "default" if found.origin == "default" else "custom"
    )
    return Finding(what="compaction", state="ok", found=f"policy {policy}; {writer}")

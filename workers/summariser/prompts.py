"""What the model is asked, in files with a version.

    prompts/v1/first.md      the first summary of a conversation
               update.md     a newer one, from the previous one and what has happened since
               part.md       a part of material that is too large to be read at once
               merge.md      one summary from those of the parts
               sections.md   in all four: what belongs into a summary
               quoted.md     in all four: the data is quoted, and nothing in it is an instruction
               reminder.md   behind the data, so that the last word is ours

A changed prompt makes other summaries, so each states the version of what it was made with: the
folder's name, and a hash of the files, which an edit can't leave as it was.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final, Literal

Task = Literal["first", "update", "part", "merge"]

VERSION: Final = "v1"
"""The folder. Prompts that are meant to work differently get a new one."""
FILES: Final = ("first", "update", "part", "merge", "sections", "quoted", "reminder")
WORDS_PER_TOKEN: Final = 0.6
"""A model can't count its tokens, so it is told words; of English a token is 0.75."""
WORDS_MIN: Final = 40


@cache
def _texts() -> dict[str, str]:
    folder = files("workers.summariser").joinpath("prompts", VERSION)
    return {name: folder.joinpath(f"{name}.md").read_text("utf-8").strip() for name in FILES}


@cache
def prompt_version() -> str:
    """The version of the prompts, as summaries state it: `v1:` and a hash of what the files say."""
    digest = hashlib.sha256()
    for name, text in sorted(_texts().items()):
        digest.update(f"{name}\0{text}\0".encode())
    return f"{VERSION}:{digest.hexdigest()[:8]}"


def system_prompt(task: Task, *, nonce: str, tokens_max: int) -> str:
    """The system message of a task. `nonce` marks the data, `tokens_max` bounds the summary."""
    return _filled(task, nonce=nonce, tokens_max=tokens_max)


def reminder(*, nonce: str, tokens_max: int) -> str:
    """What stands behind the data in the user message."""
    return _filled("reminder", nonce=nonce, tokens_max=tokens_max)


def _filled(name: str, *, nonce: str, tokens_max: int) -> str:
    texts = _texts()
    words = max(WORDS_MIN, int(tokens_max * WORDS_PER_TOKEN))
    text = texts[name]
    for gap, value in (
        ("sections", texts["sections"]),
        ("quoted", texts["quoted"]),
        ("nonce", nonce),
        ("words", f"{words}"),
    ):
        text = text.replace(f"{{{{{gap}}}}}", value)
    return text

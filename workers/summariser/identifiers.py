"""Identifiers in a text: what has to be known to the letter, and no paraphrase can give back.

Paths and file names, addresses, commits and other hashes, UUIDs, ticket numbers, names with
underscores. What looks like a password or an API key is none of them: a summary is read by more
eyes than the message that it was in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from workers.summariser.sentences import without_tags

IDENTIFIER_CHARS_MIN: Final = 4
IDENTIFIER_CHARS_MAX: Final = 160
"""Characters. What is longer is data."""

_WORD: Final = re.compile(r"[^\s\"'`<>()\[\]{},;|，。、；（）「」『』“”‘’«»!！？\x00-\x1f\x7f]+")
_ENDS: Final = ".:?*=&#"
_WRITABLE: Final = re.compile(r"[\w./~@:#?&=%+*\\-]+")
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]{1,15}://[^\s/]+.*")
_WINDOWS: Final = re.compile(r"[A-Za-z]:\\\w.*")
_PATH: Final = re.compile(r"(?:~|\.{1,2})?/[\w.@+-]+(?:/[\w.@+*-]+)*/?(?::\d+)*")
_RELATIVE: Final = re.compile(r"[\w.@+-]+(?:/[\w.@+*-]+)+(?::\d+)*")
_FILE: Final = re.compile(r"\w[\w.@+-]*\.[a-z][a-z0-9]{0,7}(?::\d+)*")
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_HASH: Final = re.compile(r"(?=.*\d)(?=.*[a-f])[0-9a-f]{7,64}|(?=.*\d)(?=.*[A-F])[0-9A-F]{8,64}")
_TICKET: Final = re.compile(r"[A-Z][A-Z0-9]{1,9}-\d{1,7}|[\w.-]*(?:/[\w.-]+)?#\d{2,7}")
_NAME: Final = re.compile(r"(?=[\w.]*[^\W_]_[^\W_])[A-Za-z][\w.]*")
_SECRET: Final = re.compile(
    r"(?:sk|pk|rk|ghp|gho|ghs|ghu|github_pat|glpat|xox[a-z]|AKIA|ASIA|AIza|ya29|eyJ|hf|npm|pypi)"
    r"[-_.A-Za-z0-9]{12,}"
    r"|.*://[^/\s]*:[^/\s]*@.*"
    r"|.*[?&](?:[\w-]*(?:token|key|secret|sig|signature|password|auth|code))=.*",
    re.IGNORECASE,
)


def identifiers_of(text: str, *, names: bool = True) -> Iterator[str]:
    """The identifiers of a text in their order, again and again where they come again.

    `names`: those that have nothing but an underscore to be known by, too. In data most of these
    are the names of its fields.
    """
    for word in _WORD.findall(without_tags(text)):
        if word.isalpha():
            continue
        # A backslash is part of a path of Windows, and else of an escape.
        whole = "\\" not in word or _WINDOWS.match(word)
        for part in [word] if whole else word.split("\\"):
            found = part.rstrip(_ENDS)
            if not IDENTIFIER_CHARS_MIN <= len(found) <= IDENTIFIER_CHARS_MAX:
                continue
            if is_identifier(found) and (names or not _NAME.fullmatch(found)):
                yield found


@lru_cache(maxsize=4096)
def is_identifier(word: str) -> bool:
    """Whether a word without blanks is one."""
    if not _WRITABLE.fullmatch(word) or _SECRET.fullmatch(word):
        return False
    if _URL.fullmatch(word) or _WINDOWS.fullmatch(word) or _TICKET.fullmatch(word):
        return True
    if "/" in word:  # and/or is none, src/a.py and src/a/b are
        telling = "." in word or "~" in word or word.strip("/").count("/") > 1
        return bool(_PATH.fullmatch(word) or (telling and _RELATIVE.fullmatch(word)))
    if word.isdigit() or word.isalpha():
        return False
    return any(each.fullmatch(word) for each in (_FILE, _UUID, _HASH, _NAME))

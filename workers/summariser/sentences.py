"""Text of anybody's as sentences that can be quoted, one to a line.

    text ─ without code and data ─> lines ─> sentences ─ those that are prose ─> clean, short

A sentence ends at the punctuation of any script that ends sentences, at the end of a line, and
nowhere else. What is not prose (code, JSON, base64, tables, listings) is left out: half of it would
say nothing. What is quoted has no control characters, no lone surrogates, none of the marks by
which some models tell who speaks, and no line break, so that whoever quotes decides what a line is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

SENTENCE_CHARS_MIN: Final = 8
"""Characters of a sentence that says something, in a script of which a character is a sound."""
SENTENCE_CHARS_MAX: Final = 2_000
"""What is longer without an end is no sentence, and isn't looked at beyond its beginning."""
WORDS_MIN: Final = 3
"""Words of a sentence that says something, in a script that sets blanks between them."""
NOISE_SHARE: Final = 0.2
"""In prose no more of the characters than this are digits and ASCII punctuation."""
CLIPPED: Final = " …"
"""Stands where a quotation was cut off."""

_FENCED: Final = re.compile(r"^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1|\Z)", re.MULTILINE | re.DOTALL)
_END: Final = re.compile(
    r"[.!?…]+[\"')\]»”’]*(?=\s)"  # these end a sentence only before a blank
    r"|[。！？｡．؟۔।॥።፧។༎]+[」』”’）)\"']*"
)
_INITIAL: Final = re.compile(r"(?<!\w)[^\W\d_]\.$")
"""A single letter and a point: part of a name, or of an abbreviation."""
_BULLET: Final = re.compile(r"\s*(?:(?:[-*+•·>#]+|\d{1,3}[.)])\s+){0,4}")
_BARE: Final = re.compile(r"[!-~]{100,}")
"""Without a blank, and in ASCII: a key, base64, an address."""
_CODE: Final = re.compile(
    r"(?:[{\[<|$@=/+]|--|>>>|\d+\s*[→│|:])"  # how it begins: data, a shell, a numbered listing
    r"|.*(?:[{};,(\[]$|:=|=>|\w\(\w*\)$|[!=]=|&&|\|\||\s\|\s.*\s\|\s)"
)
_TAG: Final = re.compile(r"(?<!\w)<[A-Za-z][\w:-]{0,60}>|</[A-Za-z][\w:-]{0,60}>")
_NOISE: Final = re.compile(r"[!-@\[-`{-~]")
_WIDE: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]"
)
"""Scripts of which a character is a syllable or a word, or that set no blanks between words."""
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""Control characters, those that turn the direction of text, and other invisible ones. Joiners
stay: words of some scripts need them."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SPEAKER_MARK: Final = re.compile(
    r"<(?=\||/?s>|/?start_of_turn|/?end_of_turn|<?/?SYS>)|\|(?=>)|\[(?=/?INST\])",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """A text as one line that can be quoted."""
    line = _UNSEEN.sub("", " ".join(text.split()))
    return _SPEAKER_MARK.sub(r"\g<0> ", _SURROGATE.sub("\ufffd", line))


def clip(line: str, bytes_max: int) -> str:
    """A clean line, cut off behind a word when it is longer than so many bytes of UTF-8."""
    encoded = line.encode()
    if len(encoded) <= bytes_max:
        return line
    start = encoded[: max(0, bytes_max - len(CLIPPED.encode()))].decode(errors="ignore")
    word_end = start.rfind(" ")
    return (start[:word_end] if word_end > len(start) // 2 else start).rstrip() + CLIPPED


def sentences_of(text: str) -> Iterator[str]:
    """The prose of a text, sentence by sentence, clean and without marks of lists and headings."""
    for line in without_tags(_FENCED.sub("\n", text)).splitlines():
        for sentence in _split(line[_bullet_length(line) :].replace("**", "")):
            candidate = clean(sentence)
            if is_prose(candidate):
                yield candidate


def without_tags(text: str) -> str:
    """A text without marks such as `<note>` and `</note>`; the type `list<int>` is none."""
    return _TAG.sub(" ", text)


def is_prose(sentence: str) -> bool:
    """Whether a clean line is something that someone says, and not code or data."""
    length = len(sentence)
    if _WIDE.search(sentence, 0, 50):
        short = length < SENTENCE_CHARS_MIN // 2
    else:
        short = length < SENTENCE_CHARS_MIN or sentence.count(" ") < WORDS_MIN - 1
    if short or _CODE.match(sentence) or _BARE.search(sentence):
        return False
    return len(_NOISE.findall(sentence, 0, SENTENCE_CHARS_MAX)) <= NOISE_SHARE * min(
        length, SENTENCE_CHARS_MAX
    )


def _bullet_length(line: str) -> int:
    match = _BULLET.match(line)
    return match.end() if match else 0


def _split(line: str) -> Iterator[str]:
    """The sentences of a line. `e.g. this` and `z. B. Köln` have no end of one inside."""
    start = 0
    for end in _END.finditer(line):
        following = line[end.end() : end.end() + 2].strip()
        if following[:1].islower() or _INITIAL.search(line, max(0, end.end() - 3), end.end()):
            continue
        yield line[start : end.end()][:SENTENCE_CHARS_MAX]
        start = end.end()
    if start < len(line):
        yield line[start : start + SENTENCE_CHARS_MAX]

"""A summary without a model: sentences of the conversation itself, and it says so.

    messages, summary before ─> candidates ─> ranking ─> picks within shares of the room ─> text

When there is no key, or no endpoint answers while the context is full, this is better than nothing:
what was asked for, what came of it, which tool calls got no output, and which paths, ids and
addresses were named. Each line is quoted data under the seq of the event that it is from, where
it can be looked up; no line is anything but a heading of this module or such a quotation.

The picks of an extractive summary before are read back and take part like any others, under their
own seqs, so that round after round the text stays within the same bounds. The same material always
gives the same text. Which sentences are central is for networkx to say: `ranking` tells why it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final, get_args

import msgspec

from eventlog.compaction.summarizer import Material, Summary, SummaryFailed
from eventlog.compaction.tokens import count_dicts, count_text
from eventlog.rendering import summary_dict
from workers.summariser.candidates import (
    HEADINGS,
    MARK,
    Pick,
    Section,
    call_picks,
    name_picks,
    preselected,
    previous_picks,
    sentence_picks,
)
from workers.summariser.ranking import Lexemes, lexemes_of, overlap, rank, telling
from workers.summariser.sentences import clean, clip

SHARES: Final[dict[Section, float]] = {
    "calls": 0.1,
    "asked": 0.3,
    "before": 0.25,
    "identifiers": 0.15,
    "said": 0.2,
    "outputs": 0.0,
}
"""Of the room for lines, what each section may take before the best of what is left is taken."""
SMALLER: Final = 0.95
"""Share of what is replaced that the text may take: another model may count it differently."""
EXPLAINED_FROM_TOKENS: Final = 256
"""From this size on there is room to say what the numbers are."""
LINE_BYTES_MAX: Final = 400
"""Longest quotation, in bytes of UTF-8."""
LINE_BYTES_PER_TOKEN: Final = 2
"""In a small summary a quotation may have so many bytes for each token of the whole."""
TOOLS_MAX: Final = 12
"""Names of tools in the line that says which were called how often."""
WANTED: Final = 4.0
"""How much more a sentence counts that has all the words of the instructions."""
ASIDE: Final = 0.3
"""Share of the usual standing below which an answer has to do with nothing else that was said..."""
ASIDE_FROM: Final = 20
"""...where there are so many sentences that this means something."""
ALIKE: Final = 0.8
"""A sentence with more than this share of its words in a better one of its section is left out."""


class ExtractiveSummarizer:
    """A `Summarizer` that needs no model, no key, no network and no data files."""

    async def summarize(self, material: Material) -> Summary:
        """Pick sentences, in a thread. Raises `SummaryFailed`: `not_smaller`, or `empty`."""
        text = await asyncio.to_thread(extract, material)
        return Summary(text=text, method="extractive")


def extract(material: Material) -> str:
    """The summary's text: at most `tokens_max` tokens, and fewer than it replaces."""
    frame = count_dicts([summary_dict("")]).tokens  # what stands around it in the context
    room = min(material.tokens_max, int(material.tokens * SMALLER) - frame)
    longest = min(LINE_BYTES_MAX, LINE_BYTES_PER_TOKEN * max(0, room))
    previous = list(previous_picks(material))
    candidates = preselected([*sentence_picks(material), *previous])
    calls = list(call_picks(material))
    names = name_picks(material, previous)
    head = _head(material, room)
    if not (candidates or calls or names or len(head) > 1):
        raise SummaryFailed("empty", "there is no sentence in what was to be summarised")
    ranked = [*calls, *_ranked(candidates, material), *names]
    clipped = [msgspec.structs.replace(each, text=clip(each.text, longest)) for each in ranked]
    picks = _fill(clipped, room - count("\n".join(head)))
    while count(text := _render(head, picks)) > room:
        if not picks:
            raise SummaryFailed(
                "not_smaller",
                f"a summary without a model takes more than the {max(0, room):,} tokens there are",
            )
        picks.pop()  # the one that was taken last
    if not picks and len(head) == 1:
        raise SummaryFailed("not_smaller", "no sentence fits into the tokens there are")
    return text


def count(text: str) -> int:
    """Tokens of a text, by the usual tokenizer: nobody knows yet which model will read it."""
    return count_text(text).tokens


# --- what is picked ------------------------------------------------------------------------------


def _ranked(found: Sequence[Pick], material: Material) -> list[Pick]:
    """The best first: central, and said where it counts. Without what repeats a better one."""
    lexemes = [lexemes_of(each.text) for each in found]
    wanted = telling(lexemes_of(clean(material.instructions or "")), lexemes)
    priors = [
        each.prior * (1 + WANTED * overlap(wanted, words))
        for each, words in zip(found, lexemes, strict=True)
    ]
    standing = rank(lexemes, priors)
    least = ASIDE * median(standing) if len(found) >= ASIDE_FROM else 0
    order = sorted(range(len(found)), key=lambda at: (-standing[at] * priors[at], at))
    taken: dict[Section, list[Lexemes]] = {section: [] for section in HEADINGS}
    picks: list[Pick] = []
    for at in order:
        section = found[at].section
        aside = standing[at] < least and section in ("said", "outputs")
        again = any(overlap(lexemes[at], each) > ALIKE for each in taken[section])
        if aside or again or not lexemes[at]:
            continue
        taken[section].append(lexemes[at])
        picks.append(found[at])
    return picks


def _fill(ranked: Sequence[Pick], room: int) -> list[Pick]:
    """What fits: each section within its share, then the best of the rest."""
    costs = [count(each.line) + 1 for each in ranked]
    taken: dict[int, None] = {}
    opened: set[Section] = set()

    def take(places: Iterable[int], limit: int) -> int:
        spent = 0
        for place in places:
            section = ranked[place].section
            cost = costs[place] + (0 if section in opened else count(HEADINGS[section]) + 2)
            if place not in taken and spent + cost <= limit:
                taken[place] = None
                opened.add(section)
                spent += cost
        return spent

    left = room
    for section, share in SHARES.items():
        own = [place for place, each in enumerate(ranked) if each.section == section]
        left -= take(own, min(left, int(share * room)))
    take(range(len(ranked)), left)
    return [ranked[place] for place in taken]


# --- how it is written ---------------------------------------------------------------------------


def _head(material: Material, room: int) -> list[str]:
    """What this is; which tools were called, how often."""
    also = " and from the summary before" if material.previous_summary else ""
    head = [f"{MARK} sentences picked from events {material.from_seq} to {material.to_seq}{also}."]
    if room < EXPLAINED_FROM_TOKENS:
        return head
    head[0] += " Each is quoted under the number of its event, where the whole can be read."
    tools = Counter(clean(call.name) for each in material.messages for call in each.tool_calls)
    if tools:
        most = sorted(tools.items(), key=lambda tool: (-tool[1], tool[0]))[:TOOLS_MAX]
        head.append("Tools called: " + ", ".join(f"{clip(name, 60)} {n}" for name, n in most))
    return head


def _render(head: Sequence[str], picks: Sequence[Pick]) -> str:
    """Sections in their order, and in each the lines in that of the events."""
    lines = list(head)
    for section in get_args(Section):
        own = [each for each in picks if each.section == section]
        if section != "identifiers":
            own.sort(key=lambda each: (each.seq, not each.before, each.place))
        if own:
            lines += ["", HEADINGS[section], *(each.line for each in own)]
    return "\n".join(lines)

"""How many tokens an image takes: each family of models has a rule of its own.

    tiles      scaled into 2,048 × 2,048 and to 768 on the short side; squares of 512 (OpenAI)
    patches    scaled into a budget of squares of 32, times a factor (newer, smaller; OpenAI)
    grid       scaled into a longest side and a number of squares of 28 (Claude)
    crops      258 for each crop, or a fixed number (Gemini)

The rules are those that the providers document. The size is read from the first bytes of a data
URL; nothing is ever fetched. An image of unknown size counts as the largest that its rule allows,
and as an estimate, and so does one for a model whose rule isn't known.
"""

from __future__ import annotations

import binascii
import math
from bisect import bisect_right
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final, Protocol

import imagesize
import msgspec

from eventlog.compaction.counts import TokenCount
from eventlog.compaction.windows import bare_name, longest_match

HEAD_LENGTH: Final = 256 * 1024
"""Characters of base64 that are looked at: a JPEG's size comes after its thumbnail and profiles."""
SIDE_MAX: Final = 1_000_000
"""Pixels. A side that is said to be longer is damage."""
URL_PREFIX_LENGTH_MAX: Final = 256
"""Characters before the comma of a data URL."""
PATCHES_MAX: Final = 30_000
"""Patches of an image beyond which OpenAI refuses the request."""
_FORMATS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF8", b"RIFF")
"""How the files begin that models read; HEIC has its mark behind the first four bytes."""
_URLSAFE: Final = str.maketrans("-_", "+/", " \t\r\n")


class Rule(Protocol):
    """How a family of models counts images."""

    @property
    def certain(self) -> bool:
        """Whether its provider documents it."""
        ...

    def tokens(self, width: int, height: int, detail: str) -> int:
        """Of an image of this size in pixels."""
        ...

    def most(self, detail: str) -> int:
        """Of an image of any size."""
        ...


class Tiles(msgspec.Struct, frozen=True, kw_only=True):
    """So many for the image, so many for each tile; low detail has no tiles."""

    base: int
    tile: int
    certain: bool = True

    def tokens(self, width: int, height: int, detail: str) -> int:
        """Of an image of this size in pixels."""
        if detail == "low":
            return self.base
        width, height = _within(width, height, 2_048)
        short = min(width, height)
        if short > 768:
            width, height = width * 768 // short, height * 768 // short
        return self.base + self.tile * _squares(width, height, 512)

    def most(self, detail: str) -> int:
        """Of an image of any size: of 2,048 × 768."""
        return self.tokens(2_048, 768, detail)


class Budget(msgspec.Struct, frozen=True):
    """What an image is scaled down to: its longest side in pixels, its patches."""

    side: int | None = None
    patches: int | None = None


class Patches(msgspec.Struct, frozen=True, kw_only=True):
    """A token for each patch, times a factor in hundredths."""

    hundredths: int
    budgets: Mapping[str, Budget]
    """By level of detail; `auto` is there always."""
    certain: bool = True

    def tokens(self, width: int, height: int, detail: str) -> int:
        """Of an image of this size in pixels."""
        budget = self.budgets.get(detail) or self.budgets["auto"]
        if budget.side is not None:
            width, height = _within(width, height, budget.side)
        count = _squares(width, height, 32)
        if budget.patches is not None and count > budget.patches:
            count = _squares(*_within_patches(width, height, budget.patches), 32)
            count = min(count, budget.patches)
        return self._scaled(count)

    def most(self, detail: str) -> int:
        """Of an image of any size; where there is no limit, by that of high detail."""
        budget = self.budgets.get(detail) or self.budgets["auto"]
        if budget.patches is None and budget.side is not None and budget.side <= 2_048:
            return self.tokens(budget.side, budget.side, detail)
        return self._scaled(budget.patches or 2_500)

    def _scaled(self, count: int) -> int:
        return -(-min(count, PATCHES_MAX) * self.hundredths // 100)


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """A token for each square of 28, within a longest side and a number of squares."""

    side: int
    squares: int
    certain: bool = True

    def tokens(self, width: int, height: int, detail: str) -> int:
        """Of an image of this size in pixels."""
        long, short = max(width, height), min(width, height)

        def too_large(edge: int) -> bool:
            return edge > self.side or self._count(edge, long, short) > self.squares

        if too_large(long):
            long_fitting = bisect_right(range(1, long + 1), False, key=too_large)
            return self._count(max(1, long_fitting), long, short)
        return self._count(long, long, short)

    def most(self, detail: str) -> int:
        """Of an image of any size."""
        return self.squares

    @staticmethod
    def _count(edge: int, long: int, short: int) -> int:
        return _squares(edge, max(1, round(edge * short / long)), 28)


class Crops(msgspec.Struct, frozen=True, kw_only=True):
    """So many for a small image; a larger one is cut to crops by its short side."""

    crop: int = 258
    certain: bool = True

    def tokens(self, width: int, height: int, detail: str) -> int:
        """Of an image of this size in pixels."""
        if max(width, height) <= 384:
            return self.crop
        unit = max(1, min(width, height) * 2 // 3)
        return min(self.crop * _squares(width, height, unit), self.most(detail))

    def most(self, detail: str) -> int:
        """Of an image of any size: of 3,072 × 3,072 in crops of 768."""
        return self.crop * 16


class Fixed(msgspec.Struct, frozen=True, kw_only=True):
    """The same for every image, at the resolution that is the default."""

    each: int
    certain: bool = True

    def tokens(self, width: int, height: int, detail: str) -> int:
        """Of an image of this size in pixels."""
        return self.each

    def most(self, detail: str) -> int:
        """Of an image of any size."""
        return self.each


_SMALL: Final = {"auto": Budget(patches=1_536)}
_MIDDLE: Final = {"auto": Budget(side=2_048, patches=6_144)}
_HIGH: Final = Budget(side=2_048, patches=2_500)
_ORIGINAL: Final = Budget(side=6_000, patches=10_000)
_ALL: Final = Budget(side=65_535)
_LOW: Final = Budget(side=512)
_GPT_5_4: Final = {"auto": _HIGH, "low": _MIDDLE["auto"], "original": _ORIGINAL}
_GPT_5_5: Final = {"auto": _ORIGINAL, "low": _LOW, "high": _HIGH}
_GPT_5_6: Final = {"auto": _ALL, "low": _LOW, "high": _HIGH}
_CLAUDE: Final = Grid(side=1_568, squares=1_568)
_CLAUDE_LARGE: Final = Grid(side=2_576, squares=4_784)
_UNKNOWN: Final = Tiles(base=85, tile=170, certain=False)

RULES: Final[Mapping[str, Rule]] = {
    "gpt-6": Patches(hundredths=120, budgets=_GPT_5_6, certain=False),
    "gpt-5.6": Patches(hundredths=120, budgets=_GPT_5_6),
    "gpt-5.5": Patches(hundredths=120, budgets=_GPT_5_5),
    "gpt-5.4": Patches(hundredths=120, budgets=_GPT_5_4),
    "gpt-5.3": Patches(hundredths=120, budgets=_MIDDLE, certain=False),
    "gpt-5.2": Patches(hundredths=120, budgets=_MIDDLE),
    "gpt-5.1": Tiles(base=70, tile=140),
    "gpt-5": Tiles(base=70, tile=140),
    "gpt-5-mini": Patches(hundredths=120, budgets=_SMALL),
    "gpt-5-nano": Patches(hundredths=150, budgets=_SMALL),
    "gpt-4.5": Tiles(base=85, tile=170),
    "gpt-4.1": Tiles(base=85, tile=170),
    "gpt-4.1-mini": Patches(hundredths=162, budgets=_MIDDLE),
    "gpt-4.1-nano": Patches(hundredths=246, budgets=_SMALL),
    "gpt-4o": Tiles(base=85, tile=170),
    "gpt-4o-mini": Tiles(base=2_833, tile=5_667),
    "chatgpt-4o": Tiles(base=85, tile=170),
    "gpt-4-turbo": Tiles(base=85, tile=170),
    "gpt-4-vision": Tiles(base=85, tile=170),
    "o1": Tiles(base=75, tile=150),
    "o3": Tiles(base=75, tile=150),
    "o4-mini": Patches(hundredths=172, budgets=_SMALL),
    "computer-use-preview": Tiles(base=65, tile=129),
    "claude": _CLAUDE,
    "claude-opus-4-7": _CLAUDE_LARGE,
    "claude-opus-4-8": _CLAUDE_LARGE,
    "claude-opus-5": _CLAUDE_LARGE,
    "claude-sonnet-5": _CLAUDE_LARGE,
    "claude-haiku-5": _CLAUDE_LARGE,
    "claude-fable-5": _CLAUDE_LARGE,
    "gemini": Fixed(each=1_120, certain=False),
    "gemini-1.5": Crops(certain=False),
    "gemini-2.0": Crops(certain=False),  # documented as "a rough formula"
    "gemini-2.5": Crops(certain=False),
}
"""Rules by the beginning of a model's name."""


def image_tokens(part: Mapping[str, Any], model: str | None = None) -> TokenCount:
    """How many tokens the image in this content part takes for this model. Never raises."""
    rule = (longest_match(RULES, bare_name(model)) if model else None) or _UNKNOWN
    source, detail = _source_and_detail(part)
    size = _size(source)
    if size is None:
        return TokenCount(rule.most(detail), exact=False)
    return TokenCount(rule.tokens(*size, detail), exact=rule.certain)


def _source_and_detail(part: Mapping[str, Any]) -> tuple[str, str]:
    """The beginning of the image's base64, empty if there is none; and the level of detail."""
    detail = part.get("detail")
    data: object = ""
    match part:
        case {"image_url": {"url": url, **rest}}:
            data, detail = _after_comma(url), rest.get("detail", detail)
        case {"image_url": url}:
            data = _after_comma(url)
        case {"source": {"data": data}} | {"inline_data": {"data": data}}:
            pass
    start = data[:HEAD_LENGTH] if isinstance(data, str) else ""
    return start, detail if isinstance(detail, str) else "auto"


def _after_comma(url: object) -> str:
    if not isinstance(url, str) or url[:5].lower() != "data:":
        return ""
    comma = url.find(",", 0, URL_PREFIX_LENGTH_MAX)
    if comma < 0 or not url[:comma].lower().endswith(";base64"):
        return ""
    return url[comma + 1 : comma + 1 + HEAD_LENGTH]


def _size(encoded: str) -> tuple[int, int] | None:
    """Width and height in pixels of the image that begins so; None if that can't be told."""
    clean = encoded.translate(_URLSAFE).rstrip("=")
    if len(clean) % 4 == 1:
        clean = clean[:-1]
    try:
        head = binascii.a2b_base64(clean + "=" * (-len(clean) % 4))
    except (binascii.Error, ValueError):
        return None
    if not head.startswith(_FORMATS) and head[4:8] != b"ftyp":
        return None
    width, height = imagesize.get(BytesIO(head))
    if not (0 < width <= SIDE_MAX and 0 < height <= SIDE_MAX):
        return None
    return int(width), int(height)


def _squares(width: int, height: int, side: int) -> int:
    return -(-width // side) * -(-height // side)


def _within(width: int, height: int, side: int) -> tuple[int, int]:
    """Scaled down so that neither side is longer; never enlarged."""
    longest = max(width, height)
    if longest <= side:
        return width, height
    return max(1, round(width * side / longest)), max(1, round(height * side / longest))


def _within_patches(width: int, height: int, patches: int) -> tuple[int, int]:
    """Scaled down so that whole patches of 32 fit the budget."""
    shrink = math.sqrt(32 * 32 * patches / (width * height))
    across, down = width * shrink / 32, height * shrink / 32
    shrink *= min(max(1, math.floor(across)) / across, max(1, math.floor(down)) / down)
    return max(1, math.floor(width * shrink)), max(1, math.floor(height * shrink))

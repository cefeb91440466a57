"""Tokens of images: the providers' own examples, and sizes read from files."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.compaction.images import HEAD_LENGTH, RULES, image_tokens
from tests.strategies import json_objects


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG of this size."""
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + b"IHDR" + header + bytes(40)


def jpeg(width: int, height: int, *, before: int = 0) -> bytes:
    """The beginning of a JPEG of this size, with segments of `before` bytes before it."""
    padding = b"".join(
        b"\xff\xe1" + struct.pack(">H", 2 + length) + bytes(length)
        for length in ([before % 60_000] + [60_000] * (before // 60_000) if before else [])
    )
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes(9)
    start = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    return start + padding + b"\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + bytes(64)


def gif(width: int, height: int) -> bytes:
    """The beginning of a GIF of this size."""
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(60)


def webp(width: int, height: int) -> bytes:
    """The beginning of a WebP of this size."""
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"RIFF" + bytes(4) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + bytes(40)


def url(data: bytes, kind: str = "png") -> str:
    """The data as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def part(width: int, height: int, detail: str | None = None) -> dict[str, Any]:
    """An image of this size as a part of the chat completions API."""
    image = {"url": url(png(width, height))} | ({"detail": detail} if detail else {})
    return {"type": "image_url", "image_url": image}


@pytest.mark.parametrize(
    ("model", "width", "height", "detail", "tokens"),
    [
        ("gpt-4o", 1024, 1024, "high", 765),
        ("gpt-4o", 2048, 4096, "high", 1105),
        ("gpt-4o", 4096, 8192, "low", 85),
        ("gpt-4o", 512, 512, None, 255),
        ("gpt-4o", 513, 512, None, 425),
        ("gpt-4o-mini", 128, 64, "high", 8500),
        ("gpt-4o-mini", 128, 64, "low", 2833),
        ("gpt-5", 1024, 1024, "auto", 630),
        ("o1", 1024, 1024, "high", 675),
        ("o4-mini", 1800, 2400, "high", 2498),
        ("o4-mini", 1, 1_000_000, None, 2642),
        ("gpt-4.1-nano", 1024, 1024, None, 2520),
        ("gpt-5-mini", 1600, 1600, None, 1826),
        ("gpt-5.4", 1024, 1024, "high", 1229),
        ("gpt-5.4", 2048, 2048, "high", 3000),
        ("gpt-5.6-luna", 2048, 2048, "low", 308),
        ("gpt-5.6-luna", 60_000, 60_000, "original", 36_000),
        ("claude-sonnet-4-5", 200, 200, None, 64),
        ("claude-sonnet-4-5", 1092, 1092, None, 1521),
        ("claude-sonnet-4-5", 1920, 1080, None, 1560),
        ("claude-sonnet-4-5", 2000, 1500, None, 1564),
        ("claude-sonnet-4-5", 3840, 2160, None, 1560),
        ("claude-sonnet-4-5", 1075, 1520, None, 33 * 47),
        ("claude-opus-4-7", 1920, 1080, None, 2691),
        ("claude-opus-4-7", 2000, 1500, None, 3888),
        ("claude-opus-4-7", 3840, 2160, None, 4784),
        ("claude-sonnet-4-5", 1, 1_000_000, None, 56),
        ("gemini-2.5-flash", 384, 384, None, 258),
        ("gemini-2.5-flash", 960, 540, None, 6 * 258),
    ],
)
def test_image_when_size_is_known_takes_what_its_provider_documents(
    model: str, width: int, height: int, detail: str | None, tokens: int
) -> None:
    """The examples and tables of the providers' documentation, and the edges of their rules."""
    assert image_tokens(part(width, height, detail), model).tokens == tokens


@pytest.mark.parametrize("data", [png(960, 540), jpeg(960, 540), gif(960, 540), webp(960, 540)])
def test_image_when_in_any_form_of_part_is_measured(data: bytes) -> None:
    """Every provider's form, in each of the formats that models read."""
    encoded = base64.b64encode(data).decode()
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url(data), "detail": "high"}},
        {"type": "image_url", "image_url": {"url": url(data).replace("data:", "DATA:")}},
        {"type": "input_image", "image_url": url(data), "detail": "auto"},
        {"type": "image", "source": {"type": "base64", "media_type": "x", "data": encoded}},
        {"inline_data": {"mime_type": "x", "data": encoded.replace("+", "-").replace("/", "_")}},
        {"type": "image_url", "image_url": {"url": url(data).rstrip("=")}},
        {"type": "image_url", "image_url": {"url": url(data)[:60] + "\n" + url(data)[60:]}},
    ]

    counts = [image_tokens(each, "gpt-4o") for each in parts]

    assert {(each.tokens, each.exact) for each in counts} == {(85 + 4 * 170, True)}


@pytest.mark.parametrize(
    "image",
    [
        "https://example.net/a.png",
        "",
        None,
        7,
        "data:image/png;base64,",
        "data:image/png;base64,!!!",
        "data:image/png;base64,\ud800",
        "data:image/png," + "x" * 80,
        url(png(0, 100)),
        url(png(2**31, 100)),
        url(gif(40_000, 100)),  # read as a negative number
        url(png(100, 100)[:20]),
        url(jpeg(100, 100)[:24]),
        url(b'<svg width="100" height="100"/>'),
        url(bytes(100)),
    ],
)
def test_image_when_size_is_unknown_counts_as_the_largest(image: object) -> None:
    """Elsewhere, or damaged: the most that the rule allows, and marked as an estimate."""
    for model, most in (("gpt-4o", 1445), ("claude-opus-5", 4784), ("gpt-5.4", 3000)):
        count = image_tokens({"type": "image_url", "image_url": {"url": image}}, model)

        assert (count.tokens, count.exact) == (most, False)


@pytest.mark.parametrize("model", [None, "my-deployment", "gemini-2.5-pro", "gpt-6-sol"])
def test_image_when_rule_is_not_certain_is_an_estimate(model: str | None) -> None:
    """What a provider doesn't document, or only roughly, is never called exact."""
    assert not image_tokens(part(960, 540), model).exact
    assert image_tokens(part(960, 540), "gpt-4o").exact  # the control


def test_image_when_it_is_large_is_measured_by_its_first_bytes() -> None:
    """What comes after the header isn't looked at; a header too far behind isn't found."""
    behind = jpeg(960, 540, before=120_000) + bytes(5_000_000)
    too_far = jpeg(960, 540, before=HEAD_LENGTH)

    for data, found in ((png(960, 540) + bytes(5_000_000), True), (behind, True), (too_far, False)):
        image = {"type": "input_image", "image_url": url(data)}
        assert image_tokens(image, "gpt-4o").exact is found


@given(
    st.sampled_from([*RULES, "other"]),
    st.sampled_from(["low", "high", "auto", "original", "x"]),
    st.integers(1, 1_000_000),
    st.integers(1, 1_000_000),
)
def test_image_when_of_any_size_takes_at_least_one_token(
    model: str, detail: str, width: int, height: int
) -> None:
    """Never nothing, and a turned image takes about the same: rules know no up and down."""
    count = image_tokens(part(width, height, detail), model).tokens

    assert 1 <= count <= 36_000 or model == "gpt-4o-mini"
    assert count == image_tokens(part(height, width, detail), model).tokens


@given(
    st.sampled_from(["claude", "gpt-4o", "gpt-5.4", "gpt-5-mini"]),
    st.integers(1, 9_000),
    st.integers(1, 9_000),
)
def test_image_when_size_is_known_takes_no_more_than_the_largest(
    model: str, width: int, height: int
) -> None:
    """So one of unknown size isn't counted as less than it may be."""
    unknown = image_tokens({"type": "input_image", "file_id": "f"}, model).tokens

    assert image_tokens(part(width, height), model).tokens <= unknown


@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF89a", b"RIFF1234WEBP", b"1234ftyp"]),
    st.binary(max_size=200),
)
def test_image_when_its_file_is_damaged_is_counted_all_the_same(start: bytes, rest: bytes) -> None:
    """Whatever is behind a mark of a format: a number, and no error."""
    image = {"type": "input_image", "image_url": url(start + rest)}

    assert image_tokens(image, "gpt-4o").tokens > 0


@given(json_objects(), json_objects())
def test_image_when_its_part_is_any_object_is_counted(inner: dict[str, Any], outer: Any) -> None:
    """A part comes from outside: whatever it holds, a number and no error."""
    assert image_tokens({**outer, "image_url": inner, "source": inner}, "gpt-4o").tokens > 0

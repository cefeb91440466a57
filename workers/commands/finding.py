"""One line of what `eventlog doctor` says, and how facts are put into it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

State = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the report."""

    what: str
    state: State
    found: str
    advice: str = ""


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder; files that vanish meanwhile don't count."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(where) / name).lstat().st_size
            except OSError:
                continue
    return total


def size(count: int) -> str:
    """`12.3 MB`."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"

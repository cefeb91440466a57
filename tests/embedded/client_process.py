"""A process that uses the embedded servers of a folder, for the tests to start and to kill.

    python client_process.py DATA

It writes one line of JSON, the servers or the error, and keeps them until its input is closed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import msgspec

from eventlog.embedded import open_servers
from eventlog.errors import ServerStartFailed
from eventlog.settings import Settings


async def main(data: Path) -> None:
    try:
        async with open_servers(Settings(data=data)) as servers:
            say(msgspec.to_builtins(servers))
            await asyncio.to_thread(sys.stdin.read)
    except ServerStartFailed as error:
        say({"error": str(error)})


def say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))

"""Running the command line as people do: as a process, with settings from the environment."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.embedded.processes import import_path

RUN_SECONDS_MAX = 60.0
WAIT_SECONDS_MAX = 20.0
MODULE = (sys.executable, "-W", "error", "-m", "workers")


class CommandLine:
    """`eventlog …` with given settings and nothing else from our own environment."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("EVENTLOG", "OPENAI"))
        }
        kept.pop("COLUMNS", None)
        self.environment = {
            **kept,
            "PYTHONPATH": import_path(),
            "TZ": "UTC",
            "TERM": "xterm",
            **{f"EVENTLOG_{name.upper()}": value for name, value in settings.items()},
        }

    def run(
        self,
        *arguments: str,
        code: int | None = 0,
        given: str | bytes = b"",
        columns: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, and expect this exit code."""
        environment = dict(self.environment)
        if columns is not None:
            environment["COLUMNS"] = str(columns)
        done = subprocess.run(
            [*MODULE, *arguments],
            env=environment,
            input=given.encode() if isinstance(given, str) else given,
            capture_output=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )
        result = subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )
        if code is not None:
            said = f"{arguments}: exit code {done.returncode}\n{result.stdout}\n{result.stderr}"
            assert done.returncode == code, said
        return result

    def run_on_terminal(self, *arguments: str, columns: int = 80) -> tuple[int, str]:
        """Run a command whose output is a terminal; its exit code and all that it was sent."""
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*MODULE, *arguments],
            env={**self.environment, "COLUMNS": str(columns), "LINES": "24"},
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        output = b""
        try:
            while piece := _read(master):
                output += piece
            return process.wait(RUN_SECONDS_MAX), output.decode()
        finally:
            process.kill()
            process.wait()
            os.close(master)

    async def start(self, *arguments: str) -> Running:
        """Start a command that goes on."""
        process = await asyncio.create_subprocess_exec(
            *MODULE,
            *arguments,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return Running(process)


class Running:
    """A command that goes on. `async with` ends it, however the test ends."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""

    async def until(self, text: str) -> None:
        """Read its output until this text is in it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while text not in self.output:
                piece = await self.process.stdout.read(4096)
                assert piece, f"{text!r} never came, but:\n{self.output}\n{await self._errors()}"
                self.output += piece.decode()

    async def interrupt(self, number: int = signal.SIGINT) -> float:
        """Send a signal; how many seconds the process then took to end."""
        begin = time.monotonic()
        self.process.send_signal(number)
        await self.end()
        return time.monotonic() - begin

    async def end(self) -> int:
        """Wait for its end, reading the rest of what it says; its exit code."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    async def _errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # Linux says so when the other side is closed
        return b""


def sample(name: str) -> Path:
    """A recorded conversation that ships with the project."""
    return Path(__file__).resolve().parents[2] / "examples" / "transcripts" / name

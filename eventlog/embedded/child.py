"""One running server program: start it, know when it is ready, stop it, kill it.

    spawn -> (ready?) -> ready -> stop: ask, then insist, then kill -> gone

Blocking calls only; the supervisor runs them beside its loop. `spawn` must be called on a thread
that lives as long as the server should: the kernel stops the server when that thread ends.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from eventlog.embedded import launch
from eventlog.embedded.logs import log_end, log_size, open_log
from eventlog.errors import ServerStartFailed

POLL_SECONDS = 0.01
"""Pause between two looks whether a server has become ready."""


class Child:
    """A server program that was started, and its log since then."""

    def __init__(self, *, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._log_start = log_size(log)
        with open_log(log) as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def wait(self) -> int:
        """Block until it has ended; returns its exit code."""
        return self._process.wait()

    def wait_ready(self, is_ready: Callable[[], bool], *, seconds_max: float) -> None:
        """Block until the server accepts work; raises `ServerStartFailed` with its log."""
        deadline = time.monotonic() + seconds_max
        while not is_ready():
            if self.exit_code is not None:
                raise self.failed(f"ended with code {self.exit_code} before it was ready")
            if time.monotonic() > deadline:
                self.kill()
                raise self.failed(f"was not ready after {seconds_max:.0f} s and was killed")
            time.sleep(POLL_SECONDS)

    def stop(self, steps: Sequence[tuple[signal.Signals, float]]) -> int:
        """Send each signal and wait so many seconds for the end; SIGKILL after the last."""
        for number, seconds in steps:
            self._process.send_signal(number)
            try:
                return self._process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                continue
        return self.kill()

    def kill(self) -> int:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        return self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; does nothing when it has ended."""
        self._process.send_signal(number)

    def failed(self, what: str) -> ServerStartFailed:
        """The error for a start that failed, with the end of the log and what to do."""
        hint = launch.HINTS.get(self.exit_code or 0, "look there for the reason")
        return ServerStartFailed(
            f"embedded {self.name} {what}; {hint}. The end of {self.log}:\n"
            f"{log_end(self.log, since=self._log_start)}"
        )

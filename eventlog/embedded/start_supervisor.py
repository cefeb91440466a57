"""Start the supervisor without loading the rest of the library.

    python -P start_supervisor.py DATA LOCK_FD LISTENER_FD

`import eventlog` loads the whole log, its drivers and its telemetry: a quarter of a second that the
first command would wait for, and memory that the supervisor would hold without a use. So this file,
run by its path, puts an empty package in the place of `eventlog`: the same folder, but nothing of
its own imported. What the supervisor needs is imported from there as usual.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


def main(data: Path, lock: int, listener: int) -> None:
    """Become the supervisor; see there."""
    package = ModuleType("eventlog")
    package.__path__ = [str(Path(__file__).absolute().parents[1])]
    sys.modules["eventlog"] = package

    from eventlog.embedded.supervisor import run_supervisor

    run_supervisor(data, lock, listener)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""Samples of transcripts, and what tests of their readers ask of a transcript."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest

from eventlog.envelope import RecordedEvent
from eventlog.events import SessionCreated, StoredEvent
from eventlog.folding import fold, initial
from eventlog.integrations.transcripts import Transcript, event_id_of, resolve
from eventlog.state import SessionState

SESSION: Final = UUID("0192f3a0-0000-7000-8000-000000000001")
NOON: Final = datetime(2026, 1, 5, 12, tzinfo=UTC)
SAMPLES: Final = Path(__file__).parent / "samples"
EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples" / "transcripts"

Write = Callable[..., Path]


def sample(name: str) -> Path:
    """A sample by its name without suffix, from the tests or from the examples."""
    file = SAMPLES / f"{name}.jsonl"
    return file if file.exists() else EXAMPLES / f"{name}.jsonl"


def every_sample() -> list[Path]:
    """All transcripts of the checkout."""
    return sorted([*SAMPLES.glob("*.jsonl"), *EXAMPLES.glob("*.jsonl")])


def folded(transcript: Transcript) -> SessionState:
    """The state of a session into which the transcript was imported."""
    created = SessionCreated(
        key=transcript.key, title=transcript.title, metadata=transcript.user_metadata
    )
    return fold(initial(SESSION), recorded([created, *resolve(transcript, first_seq=2)]))


def recorded(events: Iterable[StoredEvent]) -> list[RecordedEvent]:
    """The events as a log would have recorded them, from seq 1."""
    return [
        RecordedEvent(SESSION, seq, event_id_of(SESSION, str(seq)), NOON, event)
        for seq, event in enumerate(events, start=1)
    ]


def counted(transcript: Transcript) -> int:
    """How many lines the report accounts for."""
    return sum(sum(counts.values()) for counts in transcript.report.became.values())


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes lines (bytes as they are, anything else as JSON) into a file and returns its path."""

    def write_lines(*lines: Any, name: str = "session.jsonl") -> Path:
        path = tmp_path / name
        encoded = (
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        )
        path.write_bytes(b"".join(encoded))
        return path

    return write_lines

"""Random conversations on real servers against their twins in memory, with faults at every step.

`EVENTLOG_TEST_MODEL_EXAMPLES` (50) and `EVENTLOG_TEST_MODEL_STEPS` (25) make it longer. The other
tests are controls: each takes one protection away and expects the machine to notice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

import eventlog.fanout
from eventlog.envelope import Row
from eventlog.store import Answer, Command
from eventlog.telemetry import metrics
from projections.projection import Progress
from tests.model.laboratory import laboratory
from tests.model.machine import ConversationMachine
from tests.model.processes import FaultyStore
from tests.model.projecting import MortalProjection

EXAMPLES = int(os.environ.get("EVENTLOG_TEST_MODEL_EXAMPLES", "50"))
STEPS = int(os.environ.get("EVENTLOG_TEST_MODEL_STEPS", "25"))
EXAMPLES_THAT_SHOW_ALL = 40
SEEN = (
    "unknown outcome settled",
    "rival refused",
    "dead writer: stored",
    "dead writer: not stored",
)
"""What a run must have met at least once to have shown anything."""

pytestmark = [
    pytest.mark.timeout(60 + 10 * EXAMPLES),
    # Processes that crash leave connections behind, as they should.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_conversations_when_anything_happens_are_what_was_acknowledged(tmp_path: Path) -> None:
    """Whatever writers, readers and faults do, the log and its copies are what memory holds."""
    with laboratory(tmp_path) as lab:
        machine: Any = partial(ConversationMachine, lab)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
    sys.stdout.write(f"\n{EXAMPLES} examples: {dict(lab.seen)}, {metrics}\n")
    if EXAMPLES >= EXAMPLES_THAT_SHOW_ALL:
        assert [each for each in SEEN if not lab.seen[each]] == []
        assert metrics.duplicates
        assert metrics.repaired_rows
        assert metrics.fell_behind
        assert metrics.snapshots_used


# --- controls ------------------------------------------------------------------------------------


@contextmanager
def machine(folder: Path) -> Iterator[ConversationMachine]:
    """A machine whose rules are called by hand; the block ends with what it notices."""
    with laboratory(folder) as lab:
        made = ConversationMachine(lab)
        try:
            with pytest.raises(AssertionError):
                yield made
        finally:
            made._failed = True  # there is nothing to heal
            made.teardown()


def say(made: ConversationMachine, *faults: str) -> None:
    """Append a message that was given no id."""
    options = {"where": 0, "who": 0, "fact": None, "expecting": "any", "named": False}
    made.append(said=["hi"], faults=list(faults), **options)


def test_machine_when_retries_look_for_nothing_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer gets lost, and the retry stores the event again."""
    commit = FaultyStore.commit

    async def forgetful(self: FaultyStore, lane: int, commands: list[Command]) -> list[Answer]:
        for command in commands:
            command.sent = False
        return await commit(self, lane, commands)

    monkeypatch.setattr(FaultyStore, "commit", forgetful)
    with machine(tmp_path) as made:
        say(made, "lost after")
        made.check()


def test_machine_when_acknowledgements_come_too_early_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second append is acknowledged, and not stored."""
    with machine(tmp_path) as made:
        say(made)
        made.check()
        monkeypatch.setattr(FaultyStore, "commit", acknowledge)
        say(made)
        made.check()


async def acknowledge(self: FaultyStore, lane: int, commands: list[Command]) -> list[Answer]:
    """A commit that does nothing."""
    return [
        Answer(0, command.seen_seq, command.seen_seq, command.seen.position + 1, 0)
        for command in commands
    ]


def test_machine_when_feeds_may_have_holes_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publication gets lost, and the next one is appended to the feed all the same."""
    naive = eventlog.fanout.SCRIPT.replace("elseif last > 0 and first > last + 1", "elseif false")
    assert naive != eventlog.fanout.SCRIPT
    monkeypatch.setattr(eventlog.fanout, "SCRIPT", naive)
    with machine(tmp_path) as made:
        publish(made)
        made.append_unpublished(where=0, who=0)
        say(made)
        publish(made)
        made.check()


def publish(made: ConversationMachine) -> None:
    """Wait until the first process has published all it committed."""
    fanout = made.processes[0].log.fanout
    assert fanout is not None
    made.run(fanout.drained())


def test_machine_when_projectors_are_not_fenced_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projector goes on with shards that another one took."""

    async def move(
        self: MortalProjection, connection: asyncpg.Connection[Any], progress: Progress, last: Row
    ) -> None:
        return None

    monkeypatch.setattr(MortalProjection, "_move", move)
    with machine(tmp_path) as made:
        made.begin_to_project(who=0)
        made.begin_to_project(who=1)
        say(made)
        for shard in range(2):
            made.project_as_a_zombie(shard=shard)

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
import projections.projection
from eventlog.envelope import Row
from eventlog.store import Answer, Command
from eventlog.telemetry import metrics
from projections.folding import Change, Folded
from projections.projection import Progress
from projections.tables import Tables
from projections.usage import UsageViews
from tests.model.laboratory import SHARDS, laboratory
from tests.model.machine import ConversationMachine
from tests.model.processes import FaultyStore
from tests.model.projecting import Death, MortalProjection
from tests.model.world import KINDS

EXAMPLES = int(os.environ.get("EVENTLOG_TEST_MODEL_EXAMPLES", "50"))
STEPS = int(os.environ.get("EVENTLOG_TEST_MODEL_STEPS", "25"))
EXAMPLES_THAT_SHOW_MUCH = 40
EXAMPLES_THAT_SHOW_ALL = 200
SEEN = ("unknown outcome settled", "rival refused")
"""What a run must have met at least once to have shown anything."""
SEEN_OF_THE_DEAD = ("dead writer: stored", "dead writer: not stored")
"""Which of these a dead writer's append becomes is a matter of moments: a long run meets both."""

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
        assert [each for each in SEEN_OF_THE_DEAD if not lab.seen[each]] == []
    if EXAMPLES >= EXAMPLES_THAT_SHOW_MUCH:
        assert [each for each in SEEN if not lab.seen[each]] == []
        assert any(lab.seen[each] for each in SEEN_OF_THE_DEAD)
        assert metrics.duplicates
        assert metrics.repaired_rows
        assert metrics.fell_behind
        assert metrics.snapshots_used


def test_machine_when_the_projector_died_expects_nothing_of_one_that_lost_its_shards(
    tmp_path: Path,
) -> None:
    """Until a new projector begins, all that are left are refused, and none is asked to go on."""
    with laboratory(tmp_path) as lab:
        made = ConversationMachine(lab)
        try:
            made.begin_to_project(who=0)
            made.begin_to_project(who=1)
            for shard in range(SHARDS):
                project(made, shard, "before commit")
            project_all(made)
            assert lab.seen["projector died before commit"] == 1
            assert lab.seen["projector fenced"] == 1
            made.begin_to_project(who=1)
            crash(made, who=1)
            project_all(made)
            assert lab.seen["projector fenced"] == 2
            made.check()
        finally:
            made.teardown()


def test_machine_when_forks_are_erased_expects_those_that_inherit_nothing_to_go_too(
    tmp_path: Path,
) -> None:
    """A fork of a fork goes with its forebear, also if it begins before that one's first event."""
    with laboratory(tmp_path) as lab:
        made = ConversationMachine(lab)
        try:
            made.rewind(back=0, where=0, who=0)
            made.fork(back=0, where=0, who=0)
            made.fork(back=0, where=1, who=0)
            made.fork(back=8, where=2, who=0)
            made.check()
            made.erase(forks=True, where=1, who=0)
            made.check()
            assert [each.erased for each in made.chats] == [False, True, True, True]
            assert not made.chats[3].holds(made.chats[1])
        finally:
            made.teardown()


def test_machine_when_a_closed_conversation_is_erased_expects_subscribers_to_have_ended_before(
    tmp_path: Path,
) -> None:
    """A subscription ends with the close; the tombstone behind that is for who asks again."""
    with laboratory(tmp_path) as lab:
        made = ConversationMachine(lab)
        try:
            made.create()
            made.close(who=0)
            made.check()
            made.follow(back=5, where=1, who=0)
            made.receive(count=2, which=0)
            made.erase(forks=True, where=1, who=0)
            made.receive(count=2, which=0)
            assert made.followers[0].cursor == made.chats[1].head == 3
        finally:
            made.teardown()


def project_all(made: ConversationMachine) -> None:
    """The machine goes on projecting: whoever holds the shards, and whoever held them before."""
    for shard in range(SHARDS):
        project(made, shard, "none")
        made.project_as_a_zombie(shard=shard)


def project(made: ConversationMachine, shard: int, death: Death) -> None:
    """Project a row of a shard, if there is one, and perhaps die of it."""
    made.project(shard=shard, count=1, death=death, from_redis=False)


def crash(made: ConversationMachine, *, who: int) -> None:
    """A process dies after an append."""
    made.crash(who=who, after=0.0, which=0, said=["hi"], places=[0])


# --- controls ------------------------------------------------------------------------------------


@contextmanager
def machine(folder: Path, match: str | None = None) -> Iterator[ConversationMachine]:
    """A machine whose rules are called by hand; the block ends with what it notices."""
    with laboratory(folder) as lab:
        made = ConversationMachine(lab)
        try:
            with pytest.raises(AssertionError, match=match):
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


def test_machine_when_a_view_is_not_written_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages are projected, and what they cost isn't."""

    async def write(self: UsageViews, tables: Tables, changes: list[Change]) -> None:
        return None

    with machine(tmp_path, match="usage_views") as made:
        made.begin_to_project(who=0)
        for _ in KINDS:
            say(made)
        monkeypatch.setattr(UsageViews, "write", write)
        project_everything(made)
        made.check()


def test_machine_when_projectors_know_no_erasures_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projector that remembers a session goes on from there when its end comes, erased."""

    async def as_it_was(
        connection: object, folder: object, by_session: object, folded: Folded
    ) -> Folded:
        return folded

    with machine(tmp_path) as made:
        made.begin_to_project(who=0)
        say(made)
        project_everything(made)
        made.check()
        made.erase(where=0, who=1, forks=False)
        monkeypatch.setattr(projections.projection, "without_erased", as_it_was)
        project_everything(made)
        made.check()


def project_everything(made: ConversationMachine) -> None:
    """Whoever holds the shards projects all there is."""
    for shard in range(SHARDS):
        made.project(shard=shard, count=1000, death="none", from_redis=False)

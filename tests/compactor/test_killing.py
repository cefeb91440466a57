"""Workers are killed and frozen at every step: another one finishes, and there is one summary."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from eventlog import EventLog, Settings
from eventlog.testing import until
from tests.compactor.conftest import (
    CLAIM_SECONDS,
    LEASE_SECONDS,
    SECONDS_MAX,
    long_session,
    settled,
    summaries,
)
from tests.conftest import OpenLog
from tests.faults.children import Process, process
from tests.support.model_server import ModelServer, model_server
from workers.compactor import run_compactor

KEY = "sk-nobody-may-see-this"


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    """The model of all workers."""
    async with model_server() as server:
        yield server


class Others:
    """Starts workers: one in a process of its own, one as a task here."""

    def __init__(self, folder: Path, model: ModelServer, postgres_url: str, redis_url: str) -> None:
        self._folder = folder
        self._model = model
        self._urls = (postgres_url, redis_url)

    def process(self, step: str) -> AbstractAsyncContextManager[Process]:
        """A worker that stops at a step."""
        return process(
            *("-m", "tests.compactor.actor", step, *self._urls),
            output=self._folder / "worker.log",
            EVENTLOG_COMPACTION_BASE_URL=self._model.base_url,
            EVENTLOG_COMPACTION_API_KEY=KEY,
        )

    @property
    def settings(self) -> Settings:
        """Of a log whose workers ask the same model."""
        return Settings(compaction_base_url=self._model.base_url)


@pytest.fixture
def others(tmp_path: Path, model: ModelServer, postgres_url: str, redis_url: str) -> Others:
    """What starts workers on the test's servers."""
    return Others(tmp_path, model, postgres_url, redis_url)


class Here:
    """A worker as a task."""

    def __init__(self, log: EventLog) -> None:
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(
            run_compactor(log, self._stop, claim_seconds=CLAIM_SECONDS, lease_seconds=LEASE_SECONDS)
        )

    async def __aenter__(self) -> Here:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._task


@pytest.mark.parametrize("step", ["claimed", "answered", "appended"])
async def test_worker_when_killed_at_a_step_is_replaced_by_another(
    open_log: OpenLog, others: Others, model: ModelServer, step: str
) -> None:
    """One summary, and at most one call more than without the kill."""
    log = await open_log(settings=others.settings)
    async with others.process(step) as victim:
        session = await long_session(log)
        await victim.until_said(lambda lines: f"at {step}" in lines)
        had = len(await summaries(session))
        victim.signal(signal.SIGKILL)

    assert had == (step == "appended")
    async with Here(log):
        await until(lambda: summaries(session), seconds=SECONDS_MAX)
        await until(lambda: settled(log, session), seconds=SECONDS_MAX)

    assert len(await summaries(session)) == 1
    assert len(model.requests) == (2 if step == "answered" else 1)


async def test_worker_when_killed_while_the_model_answers_is_replaced_by_another(
    open_log: OpenLog, others: Others, model: ModelServer
) -> None:
    """What the model would have answered is lost; it is asked once more."""
    log = await open_log(settings=others.settings)
    model.pause()
    async with others.process("none") as victim:
        session = await long_session(log)
        await model.arrived(1)
        victim.signal(signal.SIGKILL)
    model.resume()
    async with Here(log):
        await until(lambda: summaries(session), seconds=SECONDS_MAX)

    assert len(await summaries(session)) == 1
    assert len(model.requests) == 2
    assert KEY not in "".join(victim.said())


async def test_worker_when_frozen_and_woken_after_another_finished_appends_nothing(
    open_log: OpenLog, others: Others, model: ModelServer
) -> None:
    """Its claim is another's by then; and if it appended, the log would not take a second one."""
    log = await open_log(settings=others.settings)
    model.pause()
    async with others.process("none") as frozen:
        session = await long_session(log)
        await model.arrived(1)
        frozen.signal(signal.SIGSTOP)
        model.resume()
        async with Here(log):
            await until(lambda: summaries(session), seconds=SECONDS_MAX)
        head = await session.head()

        frozen.signal(signal.SIGCONT)
        said = ("compaction.claim_lost", "compaction.superseded", "compaction.completed")
        await frozen.until_said(lambda lines: any(each in line for line in lines for each in said))
        frozen.signal(signal.SIGTERM)
        await frozen.until_said(lambda lines: any("worker.stopped" in line for line in lines))

    assert len(await summaries(session)) == 1
    assert await session.head() == head


async def test_worker_when_stopped_by_a_signal_ends_soon_and_says_what_it_asked(
    open_log: OpenLog, others: Others, model: ModelServer
) -> None:
    """SIGTERM while the model answers: nothing is appended, and the key is in no line."""
    log = await open_log(settings=others.settings)
    model.pause()
    async with others.process("none") as worker:
        session = await long_session(log)
        await model.arrived(1)
        head = await session.head()
        worker.signal(signal.SIGTERM)
        await worker.until_said(lambda lines: any("worker.stopped" in line for line in lines))

    said = "".join(worker.said())
    assert await session.head() == head
    assert model.base_url in said
    assert "few words about what is to be done" not in said
    assert KEY not in said

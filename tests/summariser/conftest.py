"""A model server, and summarizers that ask it and wait for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.summariser.materials import KEY
from tests.support.model_server import ModelServer, model_server
from workers.summariser.model_summarizer import ModelSummarizer

Ask = Callable[..., ModelSummarizer]
"""`ask(api="responses", timeout_seconds=…)`: a summarizer that asks the test's server."""


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    """A model server of the test's own."""
    async with model_server() as started:
        yield started


@pytest.fixture
def pauses() -> list[float]:
    """The pauses in seconds that were made between tries; none is waited for."""
    return []


@pytest.fixture
async def ask(server: ModelServer, pauses: list[float]) -> AsyncIterator[Ask]:
    """Makes summarizers that ask the test's server, and closes them."""

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async with AsyncExitStack() as opened:

        def make(**fields: Any) -> ModelSummarizer:
            given: dict[str, Any] = {
                "model": "gpt-4o",
                "base_url": server.base_url,
                "key": KEY,
                "timeout_seconds": 20.0,
                "pause": pause,
                "chance": lambda: 0.0,
            }
            made = ModelSummarizer(**(given | fields))
            opened.push_async_callback(made.aclose)
            return made

        yield make

"""Which summarizer the settings describe, and prompts that can't change unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from importlib.resources import files
from typing import Any, get_args

import pytest

from eventlog.compaction.summarizer import SummaryFailed
from eventlog.errors import InvalidSetting
from eventlog.settings import Settings
from tests.summariser.materials import KEY, material_of
from tests.support.model_server import ModelServer
from workers.summariser import prompts
from workers.summariser.client import NO_KEY
from workers.summariser.guarded import GuardedSummarizer, summarizer_of
from workers.summariser.prompts import FILES, Task, prompt_version, system_prompt


@pytest.fixture(autouse=True)
def fresh_prompts() -> Iterator[None]:
    """Prompts are read once for each process; here once for each test."""
    caches = (prompts._texts, prompts.prompt_version)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, None),
        ({"compaction_model": "none"}, KEY),
        ({"compaction_model": "none", "compaction_base_url": "http://127.0.0.1:1/v1"}, KEY),
    ],
)
async def test_summarizer_when_there_is_no_model_or_key_is_none(
    fields: dict[str, Any], key: str | None
) -> None:
    """Then summaries are made in another way: that is the caller's business."""
    assert summarizer_of(Settings(**fields), key) is None


@pytest.mark.parametrize(("key", "sent"), [(None, NO_KEY), (KEY, KEY)])
@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_summarizer_when_made_of_settings_asks_that_endpoint(
    server: ModelServer, key: str | None, sent: str, api: str
) -> None:
    """Model, address, API and limit are those of the settings; one's own server needs no key."""
    settings = Settings(
        compaction_model="tiny",
        compaction_base_url=server.base_url,
        compaction_api=api,  # type: ignore[arg-type]
        compaction_window_tokens=8_192,
        compaction_tokens_per_hour_max=3_000,
    )

    async with aclosing(summarizer_of(settings, key) or pytest.fail("none")) as summarizer:
        assert isinstance(summarizer, GuardedSummarizer)
        summary = await summarizer.summarize(material_of())
        with pytest.raises(SummaryFailed) as failed:
            await summarizer.summarize(material_of(tokens=5_000))

    [request] = server.requests
    assert request.api == api
    assert request.headers["authorization"] == f"Bearer {sent}"
    assert request.body["model"] == summary.model == "tiny"
    assert summary.prompt_version == prompt_version()
    assert failed.value.kind == "no_budget"
    if api == "responses":
        assert request.body["store"] is False


@pytest.mark.parametrize(
    "fields",
    [
        {"compaction_window_tokens": 300},
        {"compaction_base_url": "ftp://127.0.0.1/"},
        {"compaction_base_url": "http://[::1"},
    ],
)
def test_summarizer_when_settings_make_no_sense_is_refused(fields: dict[str, Any]) -> None:
    """Before anything is asked, and with the name of the setting."""
    with pytest.raises(InvalidSetting, match="EVENTLOG_COMPACTION_"):
        summarizer_of(Settings(**fields), KEY)


@pytest.mark.parametrize("key", ["sk-\u00e9", "sk-a\nb", "two words", "sk-\x00"])
def test_summarizer_when_the_key_is_none_is_refused_without_showing_it(key: str) -> None:
    """What can't stand in a header is refused here, where it isn't shown."""
    with pytest.raises(InvalidSetting) as refused:
        summarizer_of(Settings(), key)

    assert key not in str(refused.value)


# --- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", get_args(Task))
def test_prompt_when_made_has_no_gaps(task: Task) -> None:
    """Everything is filled in: the nonce, the length, the sections."""
    prompt = system_prompt(task, nonce="0123", tokens_max=500)

    assert "{{" not in prompt and "}}" not in prompt
    assert "`BEGIN 0123`" in prompt and "`END 0123`" in prompt
    assert "at most 300 words" in prompt
    assert "language" in prompt
    for section in ("Goal", "Decisions", "Constraints", "State", "Open tasks", "Identifiers"):
        assert section in prompt


def test_prompt_version_when_a_file_is_edited_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One character more in any of the files makes another version."""
    texts = prompts._texts()
    versions = {prompt_version()}
    for name in FILES:
        edited = texts | {name: texts[name] + "."}
        monkeypatch.setattr(prompts, "_texts", lambda edited=edited: edited)
        prompts.prompt_version.cache_clear()
        versions.add(prompt_version())

    assert len(versions) == len(FILES) + 1
    assert all(each.startswith("v1:") and len(each) == 11 for each in versions)


def test_prompts_when_listed_are_the_files_of_the_folder() -> None:
    """No file is forgotten in the hash."""
    folder = files("workers.summariser").joinpath("prompts", prompts.VERSION)

    assert {each.name for each in folder.iterdir()} == {f"{name}.md" for name in FILES}

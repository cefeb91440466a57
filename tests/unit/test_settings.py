"""Settings out of an environment: every variable, its form, its limits, and what errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import pytest

from eventlog.errors import InvalidSetting, SetupError
from eventlog.settings import Settings, read_settings

EVERY_VARIABLE: Final = {
    "EVENTLOG_POSTGRES_URL": "postgresql://u:p@host/db",
    "EVENTLOG_POSTGRES_ADMIN_URL": "postgresql://owner@host/db",
    "EVENTLOG_REDIS_URL": "redis://host:6379/1",
    "EVENTLOG_DATA": "/var/lib/eventlog",
    "EVENTLOG_TENANT_ID": "7",
    "EVENTLOG_SHARDS": "64",
    "EVENTLOG_LANES": "4",
    "EVENTLOG_FLUSH_SECONDS": "0",
    "EVENTLOG_APPEND_TIMEOUT_SECONDS": "2.5",
    "EVENTLOG_EVENT_BYTES_MAX": "1048576",
    "EVENTLOG_FEED_ROWS_MAX": "500",
    "EVENTLOG_CACHE_TTL_SECONDS": "60",
    "EVENTLOG_REPLY_IDLE_SECONDS": "10",
    "EVENTLOG_SESSION_TTL_SECONDS": "86400",
    "EVENTLOG_ERASE_AFTER_SECONDS": "0",
    "EVENTLOG_METRICS_PORT": "9100",
    "EVENTLOG_METRICS_HOST": "0.0.0.0",
    "EVENTLOG_COMPACTION": "module-9",
    "EVENTLOG_COMPACTION_MODEL": "m-small",
    "EVENTLOG_COMPACTION_BASE_URL": "http://model:8080/v1",
    "EVENTLOG_COMPACTION_API": "responses",
    "EVENTLOG_COMPACTION_WINDOW_TOKENS": "8192",
    "EVENTLOG_COMPACTION_TIMEOUT_SECONDS": "20",
    "EVENTLOG_COMPACTION_AT_ONCE": "2",
    "EVENTLOG_COMPACTION_TOKENS_PER_HOUR_MAX": "1000000",
    "EVENTLOG_UNSAFE_DURABILITY": "true",
    "EVENTLOG_LOG_LEVEL": "debug",
}


def test_settings_when_every_variable_is_set_are_those() -> None:
    """Field `x_y` is `EVENTLOG_X_Y`, in the type of the field."""

    assert read_settings(EVERY_VARIABLE) == Settings(
        postgres_url="postgresql://u:p@host/db",
        postgres_admin_url="postgresql://owner@host/db",
        redis_url="redis://host:6379/1",
        data=Path("/var/lib/eventlog"),
        tenant_id=7,
        shards=64,
        lanes=4,
        flush_seconds=0.0,
        append_timeout_seconds=2.5,
        event_bytes_max=1048576,
        feed_rows_max=500,
        cache_ttl_seconds=60,
        reply_idle_seconds=10.0,
        session_ttl_seconds=86_400.0,
        erase_after_seconds=0.0,
        metrics_port=9100,
        metrics_host="0.0.0.0",
        compaction="module-9",
        compaction_model="m-small",
        compaction_base_url="http://model:8080/v1",
        compaction_api="responses",
        compaction_window_tokens=8192,
        compaction_timeout_seconds=20.0,
        compaction_at_once=2,
        compaction_tokens_per_hour_max=1_000_000,
        unsafe_durability=True,
        log_level="debug",
    )
    names = {f"EVENTLOG_{field.upper()}" for field in Settings.__struct_fields__}
    assert names == set(EVERY_VARIABLE), "a new setting gets a line above"


def test_settings_when_nothing_is_set_are_the_defaults() -> None:
    """Everything has a default, and the defaults are within their own limits."""
    settings = read_settings({})

    assert settings == Settings()
    assert (settings.postgres_url, settings.redis_url) == (None, None)
    assert (settings.shards, settings.flush_seconds) == (16, 0.04)
    assert settings.data.is_absolute()
    assert settings.unsafe_durability is False


def test_settings_when_a_variable_is_blank_are_as_if_it_were_not_set() -> None:
    """`EVENTLOG_SHARDS=` in a compose file means nothing; spaces around a value neither."""

    assert read_settings(dict.fromkeys(EVERY_VARIABLE, "")) == Settings()
    assert read_settings(dict.fromkeys(EVERY_VARIABLE, "  \t")) == Settings()
    assert read_settings({"EVENTLOG_SHARDS": " 32 "}).shards == 32


def test_settings_when_others_are_in_the_environment_leave_them_alone() -> None:
    """Only the prefix counts, in capitals."""

    assert read_settings({"SHARDS": "3", "eventlog_shards": "3", "PGHOST": "x"}) == Settings()


def test_settings_when_no_environment_is_given_read_that_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`os.environ` is looked at when it is called, not before."""
    monkeypatch.setenv("EVENTLOG_SHARDS", "3")

    assert read_settings().shards == 3

    monkeypatch.setenv("EVENTLOG_SHARDS", "4")

    assert read_settings().shards == 4


@pytest.mark.parametrize("text", ["none", "null", "None", "NULL"])
def test_url_when_it_is_the_word_none_is_that_word(text: str) -> None:
    """`EVENTLOG_REDIS_URL=none` means no Redis; unset means an embedded one."""

    assert read_settings({"EVENTLOG_REDIS_URL": text}).redis_url == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), ("True", True), ("0", False), ("false", False)],
)
def test_switch_when_given_as_word_or_number_is_understood(text: str, value: bool) -> None:
    """The usual spellings of yes and no."""

    assert read_settings({"EVENTLOG_UNSAFE_DURABILITY": text}).unsafe_durability is value


def test_data_when_it_begins_with_a_tilde_is_in_the_home_folder() -> None:
    """A service manager doesn't expand it, so the setting does."""

    assert read_settings({"EVENTLOG_DATA": "~/log"}).data == Path.home() / "log"


@pytest.mark.parametrize("text", ["INFO", "Warning", "error"])
def test_log_level_when_in_capitals_is_understood(text: str) -> None:
    """People write it both ways."""

    assert read_settings({"EVENTLOG_LOG_LEVEL": text}).log_level == text.lower()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TENANT_ID", "-1"),
        ("TENANT_ID", "2147483648"),
        ("SHARDS", "0"),
        ("SHARDS", "4097"),
        ("SHARDS", "-1"),
        ("LANES", "0"),
        ("LANES", "65"),
        ("FLUSH_SECONDS", "-0.1"),
        ("FLUSH_SECONDS", "61"),
        ("FLUSH_SECONDS", "nan"),
        ("FLUSH_SECONDS", "inf"),
        ("APPEND_TIMEOUT_SECONDS", "0"),
        ("APPEND_TIMEOUT_SECONDS", "nan"),
        ("EVENT_BYTES_MAX", "0"),
        ("EVENT_BYTES_MAX", "536870913"),
        ("FEED_ROWS_MAX", "0"),
        ("CACHE_TTL_SECONDS", "0"),
        ("REPLY_IDLE_SECONDS", "-inf"),
        ("METRICS_PORT", "65536"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_value_when_out_of_range_is_refused_by_name(name: str, text: str) -> None:
    """The message has the variable, the value and what it may be."""
    with pytest.raises(InvalidSetting) as caught:
        read_settings({f"EVENTLOG_{name}": text})

    assert str(caught.value).startswith(f"EVENTLOG_{name} is ")
    assert "it must be" in str(caught.value)
    assert isinstance(caught.value, SetupError)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SHARDS", "many"),
        ("SHARDS", "16.5"),
        ("SHARDS", "1_6"),
        ("LANES", "null"),
        ("TENANT_ID", "0x7"),
        ("FLUSH_SECONDS", "40ms"),
        ("UNSAFE_DURABILITY", "maybe"),
        ("DATA", "~nobody-has-this-name/log"),
    ],
)
def test_value_when_of_the_wrong_form_is_refused_by_name(name: str, text: str) -> None:
    """Also then the message leads to the variable, and no other kind of error gets out."""
    with pytest.raises(InvalidSetting) as caught:
        read_settings({f"EVENTLOG_{name}": text})

    assert f"`$.{name.lower()}`" in str(caught.value)
    assert "EVENTLOG_<NAME>" in str(caught.value)


@pytest.mark.parametrize("name", ["POSTGRES_URL", "POSTGRES_ADMIN_URL", "REDIS_URL"])
def test_error_when_another_value_is_wrong_has_no_password_in_it(name: str) -> None:
    """Errors end up in logs."""
    with pytest.raises(InvalidSetting) as caught:
        read_settings({f"EVENTLOG_{name}": "postgres://u:secret@h/d", "EVENTLOG_SHARDS": "x"})

    assert "secret" not in str(caught.value)


def test_settings_when_made_cannot_be_changed() -> None:
    """A running log's settings are what it was started with."""
    with pytest.raises(AttributeError):
        Settings().shards = 3  # type: ignore[misc]

    assert msgspec.structs.replace(Settings(), shards=3).shards == 3

"""The checker is silent about a good history and names each planted violation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eventlog.testing import message
from tests.support.checker import (
    Checkpoint,
    Connected,
    Delivered,
    Done,
    Fault,
    History,
    Journal,
    Read,
    Record,
    Sent,
    check,
    mark_of,
    read_journal,
)


def good() -> tuple[list[Record], History]:
    """A history in which everything that may happen happens, and nothing is wrong.

    Session "s": a (1) and the batch b c (2, 3) were acknowledged, d (4) was sent by a process that
    died, e was refused, f (5) was acknowledged at its second try, g never arrived.
    """
    records: list[Record] = [
        Sent("1", "s", ["a"], 0.0),
        Done("1", "stored", 1, 1.0),
        Sent("2", "s", ["b", "c"], 2.0),
        Sent("3", "s", ["d"], 2.5),
        Done("2", "stored", 2, 3.0),
        Sent("4", "s", ["e"], 3.5),
        Done("4", "refused", 0, 3.6),
        Fault("cut", 3.9),
        Sent("5", "s", ["f"], 4.0),
        Done("5", "unknown", 0, 4.1),
        Sent("5", "s", ["f"], 4.2),
        Done("5", "stored", 5, 4.3),
        Sent("6", "s", ["g"], 4.4),
        Read("s", 1, ["b", "c"], 3.1, 3.2),
        Connected("ui", "s", 0, 0.5),
        *(Delivered("ui", "s", seq, mark, seq) for seq, mark in enumerate("abc", 1)),
        Connected("ui", "s", 3, 5.0),
        Delivered("ui", "s", 4, "d", 5.1),
        Delivered("ui", "s", 5, "f", 5.2),
        Checkpoint("views", 7, 1, 3, 5.3),
        Checkpoint("views", 7, 2, 5, 5.4),
    ]
    return sorted(records, key=lambda record: record.at), {"s": list(enumerate("abcdf", 1))}


def test_checker_when_nothing_is_wrong_is_silent() -> None:
    """Unknown outcomes, repetitions and reconnects are no violations; they are counted."""
    report = check(*good(), complete=True)

    assert report.violations == []
    assert report.counts == {
        "stored": 3,
        "refused": 1,
        "unknown": 2,
        "sent_again": 1,
        "events": 5,
        "reads": 1,
        "delivered": 5,
        "reconnects": 1,
        "faults": 1,
        "stored_after_faults": 1,
    }


Plant = Callable[[list[Record], History], None]
PLANTED: dict[str, tuple[Plant, set[str]]] = {}


def planted(*kinds: str) -> Callable[[Plant], Plant]:
    """Register a violation, with the kinds that the checker must find, and no others."""

    def register(plant: Plant) -> Plant:
        PLANTED[plant.__name__] = (plant, set(kinds))
        return plant

    return register


def replace(records: list[Record], old: Record, *new: Record) -> None:
    """Put records in the place of one."""
    place = records.index(old)
    records[place : place + 1] = new


@planted("lost", "wrong")
def acknowledged_event_is_lost(records: list[Record], history: History) -> None:
    history["s"].pop()


@planted("twice")
def event_is_stored_twice(records: list[Record], history: History) -> None:
    history["s"].append((6, "a"))


@planted("moved", "wrong", "read")
def events_are_swapped(records: list[Record], history: History) -> None:
    history["s"] = list(enumerate("acbdf", 1))


@planted("gap", "moved")
def seq_is_missing(records: list[Record], history: History) -> None:
    history["s"] = [(seq + (seq > 3), mark) for seq, mark in history["s"]]


@planted("phantom")
def event_was_sent_by_nobody(records: list[Record], history: History) -> None:
    history["s"].append((6, "x"))


@planted("lost", "phantom", "wrong", "read")
def byte_is_altered(records: list[Record], history: History) -> None:
    history["s"] = list(enumerate("abXdf", 1))


@planted("phantom")
def event_of_another_session_is_stored(records: list[Record], history: History) -> None:
    history["t"] = [(1, "a")]


@planted("refused")
def refused_append_is_stored(records: list[Record], history: History) -> None:
    history["s"].append((6, "e"))


@planted("torn")
def batch_of_unknown_outcome_is_torn(records: list[Record], history: History) -> None:
    replace(records, Sent("6", "s", ["g"], 4.4), Sent("6", "s", ["g", "h"], 4.4))
    history["s"].append((6, "g"))


@planted("torn")
def batch_of_unknown_outcome_is_apart(records: list[Record], history: History) -> None:
    replace(records, Sent("3", "s", ["d"], 2.5), Sent("3", "s", ["d", "h"], 2.5))
    history["s"].append((6, "h"))


@planted("reordered")
def later_append_has_a_lower_seq(records: list[Record], history: History) -> None:
    replace(records, Sent("1", "s", ["a"], 0.0), Sent("1", "s", ["a"], 3.05))


@planted("moved")
def answers_to_one_append_differ(records: list[Record], history: History) -> None:
    records.append(Done("5", "stored", 6, 9.0))


@planted("stale")
def read_lacks_what_was_acknowledged(records: list[Record], history: History) -> None:
    records.append(Read("s", 0, ["a"], 3.1, 3.2))


@planted("read")
def read_is_no_slice_of_the_log(records: list[Record], history: History) -> None:
    records.append(Read("s", 0, ["a", "c", "b", "d", "f"], 5.1, 5.2))


@planted("skipped")
def subscriber_skips_within_a_connection(records: list[Record], history: History) -> None:
    records.remove(Delivered("ui", "s", 2, "b", 2))


@planted("skipped")
def subscriber_skips_at_a_reconnect(records: list[Record], history: History) -> None:
    replace(records, Connected("ui", "s", 3, 5.0), Connected("ui", "s", 4, 5.0))
    records.remove(Delivered("ui", "s", 4, "d", 5.1))


@planted("repeated")
def subscriber_gets_an_event_again(records: list[Record], history: History) -> None:
    last = Delivered("ui", "s", 4, "d", 5.1)
    replace(records, last, Delivered("ui", "s", 3, "c", 5.05), last)


@planted("wrong")
def subscriber_gets_other_bytes(records: list[Record], history: History) -> None:
    last = Delivered("ui", "s", 4, "d", 5.1)
    replace(records, last, Delivered("ui", "s", 4, "D", 5.1))


@planted("late")
def subscriber_never_gets_the_end(records: list[Record], history: History) -> None:
    records.remove(Delivered("ui", "s", 5, "f", 5.2))


@planted("back")
def checkpoint_goes_back(records: list[Record], history: History) -> None:
    records.append(Checkpoint("views", 7, 2, 4, 9.0))


@planted("back")
def worker_of_an_old_epoch_goes_on(records: list[Record], history: History) -> None:
    records.append(Checkpoint("views", 7, 1, 6, 9.0))


@pytest.mark.parametrize("name", PLANTED)
def test_checker_when_a_violation_is_planted_names_it(name: str) -> None:
    """Each promise has a violation that the checker finds, by its kind and no other."""
    plant, kinds = PLANTED[name]
    records, history = good()

    plant(records, history)

    assert check(records, history, complete="late" in kinds).kinds == kinds


def test_journal_when_its_writer_is_killed_has_all_it_wrote(tmp_path: Path) -> None:
    """Records of several writers, by time; a line cut off at the very end is left out."""
    one, two = Journal(tmp_path / "one"), Journal(tmp_path / "two")
    op = one.sending("s", [message("a")])
    two.fault("cut")
    one.done(op, "stored", 1)
    one.close()
    two.close()
    with (tmp_path / "one").open("ab") as file:
        file.write(b'{"type":"Sent","op":"half')

    records = read_journal(tmp_path / "one", tmp_path / "two")

    assert [type(each) for each in records] == [Sent, Fault, Done]
    assert records[0] == Sent(op, "s", [mark_of(message("a"))], records[0].at)
    assert not check(records, {"s": [(1, mark_of(message("a")))]}).violations

"""The checker sees what it is there to see: planted violations, each of which must be found."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from tests.faults.actors import Delivery, Op
from tests.faults.checker import badly_delivered, gaps, lost_or_doubled, out_of_order

IDS = [UUID(int=number) for number in range(1, 6)]
STORED = {"s": [(number, IDS[number - 1], f"c{number}") for number in range(1, 6)]}
OPS = [
    Op(op=IDS[n - 1], session="s", content=f"c{n}", sent=n, done=n + 0.5, seq=n)
    for n in range(1, 6)
]
DELIVERIES = [Delivery("s", number, IDS[number - 1]) for number in range(1, 6)]


def test_checker_when_all_is_well_finds_nothing() -> None:
    """No false alarm."""
    assert lost_or_doubled(OPS, STORED) == []
    assert gaps(STORED) == []
    assert out_of_order(OPS) == []
    assert badly_delivered(DELIVERIES, STORED) == []


@pytest.mark.parametrize(
    "stored",
    [
        {"s": STORED["s"][:3] + STORED["s"][4:]},
        {"s": [*STORED["s"], (6, IDS[0], "c1")]},
        {"s": [*STORED["s"][:4], (5, IDS[4], "changed")]},
        {"s": [*STORED["s"][:4], (6, IDS[4], "c5")]},
        {"s": [*STORED["s"], (6, UUID(int=99), "phantom")]},
    ],
    ids=["lost", "twice", "altered", "elsewhere", "phantom"],
)
def test_checker_when_the_log_is_wrong_says_so(
    stored: dict[str, list[tuple[int, UUID, str]]],
) -> None:
    """An acknowledged event lost, doubled, altered or moved, or one that nobody sent."""
    assert lost_or_doubled(OPS, stored)


def test_checker_when_an_outcome_was_never_settled_says_so() -> None:
    """Unknown is not an end."""
    assert lost_or_doubled([*OPS, Op(op=UUID(int=50), session="s", content="?")], STORED)


def test_checker_when_a_seq_is_missing_says_so() -> None:
    """A gap in the numbers."""
    assert gaps({"s": STORED["s"][:2] + STORED["s"][3:]})


def test_checker_when_acknowledged_order_is_broken_says_so() -> None:
    """Acknowledged before the other was sent, and behind it."""
    swapped = [msgspec.structs.replace(op, seq=6 - op.seq) for op in OPS]
    assert out_of_order(swapped)


@pytest.mark.parametrize(
    "deliveries",
    [
        DELIVERIES[:2] + DELIVERIES[3:],
        [*DELIVERIES[:3], DELIVERIES[2], *DELIVERIES[3:]],
        [DELIVERIES[1], DELIVERIES[0], *DELIVERIES[2:]],
        DELIVERIES[:4],
        [*DELIVERIES[:4], Delivery("s", 5, UUID(int=77))],
    ],
    ids=["skipped", "repeated", "swapped", "cut off", "another event"],
)
def test_checker_when_a_subscriber_was_served_badly_says_so(deliveries: list[Delivery]) -> None:
    """A skip, a repeat, a swap, an end too early, other content."""
    assert badly_delivered(deliveries, STORED)

"""A tail: the newest part of one numbered sequence, shared by all who follow it.

The events of a session by seq, or the rows of a shard by position. It is a bounded list without
gaps, so an item is found by its number; every subscription keeps only a number, and a slow one
costs nothing: when what it wants has left the list it reads Postgres.
"""

from __future__ import annotations

import asyncio
from typing import Final, Generic, TypeVar

from eventlog.envelope import RecordedEvent, Row

TAIL_LENGTH: Final = 4_096
"""Items a tail keeps for subscriptions a little behind; up to twice as many for a moment."""
Item = TypeVar("Item", RecordedEvent, Row)


class Tail(Generic[Item]):
    """The newest items of one numbered sequence, and who waits for the next."""

    __slots__ = ("first", "head", "items", "lives", "users", "waiters")

    def __init__(self) -> None:
        self.lives = 1
        """Counts the pasts that it forgot; what was known of the one before holds no more."""
        self.first = 0
        """Number of `items[0]`, or of the item that will be; 0 until it is known."""
        self.items: list[Item] = []
        self.head = 0
        """The highest number known to exist; items up to it may have to be read from Postgres."""
        self.waiters: list[asyncio.Future[None]] = []
        self.users = 0

    @property
    def last(self) -> int:
        """Number of the newest item; the number before `first` when there is none."""
        return self.first + len(self.items) - 1

    def begin(self, last: int) -> None:
        """Items up to `last` are being read from Postgres: the tail goes on from there."""
        if not self.first:
            self.first = last + 1

    def push(self, first: int, items: list[Item]) -> bool:
        """Add items numbered from `first`. False, and nothing changed, if they leave a hole."""
        if self.first and first > self.last + 1:
            self.head = max(self.head, first + len(items) - 1)
            return False
        if not self.first:
            self.first = first
        new = items[max(0, self.last + 1 - first) :]
        if new:
            self.items += new
            self.head = max(self.head, self.last)
            if len(self.items) > 2 * TAIL_LENGTH:
                excess = len(self.items) - TAIL_LENGTH
                del self.items[:excess]
                self.first += excess
            self.wake()
        return True

    def restart(self, last: int) -> None:
        """Forget everything; the next item will have number `last + 1`."""
        self.items = []
        self.first = last + 1
        self.wake()

    def forget(self) -> None:
        """The log lost its end: what is here may never have been, and numbers come again."""
        self.items = []
        self.first = self.head = 0
        self.lives += 1
        self.wake()

    def wake(self) -> None:
        """Let everyone who waits look again."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

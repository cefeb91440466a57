"""The state machine: random actions of writers, readers, projectors and faults, and what must hold.

Two processes share a log; a third log, in memory, is the twin to which every action is done as
well. Faults are actions like others: Redis forgets, answers get lost, connections are cut, and
processes die in the middle of what they do. After each action every session is what its twin is.
"""

from __future__ import annotations

from tests.model.breaking import Dying, Forgetting
from tests.model.compacting import Compacting
from tests.model.erasing import Erasing
from tests.model.reading import Following, Projecting, Replaying
from tests.model.writing import Appending, Replying, Revising


class ConversationMachine(
    Appending,
    Replying,
    Revising,
    Compacting,
    Replaying,
    Following,
    Projecting,
    Forgetting,
    Dying,
    Erasing,
):
    """All actions together."""

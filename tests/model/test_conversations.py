"""Random conversations on real servers against their twins in memory, with faults at every step.

`EVENTLOG_TEST_MODEL_EXAMPLES` (50) and `EVENTLOG_TEST_MODEL_STEPS` (25) make it longer.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.laboratory import laboratory
from tests.model.machine import ConversationMachine

EXAMPLES = int(os.environ.get("EVENTLOG_TEST_MODEL_EXAMPLES", "50"))
STEPS = int(os.environ.get("EVENTLOG_TEST_MODEL_STEPS", "25"))


@pytest.mark.timeout(60 + 10 * EXAMPLES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the crashed
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

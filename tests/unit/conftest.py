"""One hypothesis profile for the unit tests: no deadline, as machines differ in speed."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("unit")

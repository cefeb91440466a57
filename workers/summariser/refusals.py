"""Requests that got no answer worth reading: which kind of failure each is.

Nothing of what an endpoint says of its error is repeated, because some repeat the request, or the
key. What is said to people comes from the status and from codes that are known.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx2
import openai

from eventlog.compaction.summarizer import FailureKind, SummaryFailed

RETRY_AFTER_SECONDS_MAX: Final = 24 * 3600.0
"""An endpoint that asks for a longer pause is taken to have meant this."""

MEANINGS: Final[dict[int, str]] = {
    400: "it can't make sense of the request",
    401: "it doesn't know the key",
    403: "the key may not do this",
    404: "it has no such model or address",
    413: "the request is too large for it",
    422: "it can't make sense of the request",
}
CODES: Final[dict[str, str]] = {
    "context_length_exceeded": "the request is larger than the model's window",
    "insufficient_quota": "the account has no credit left",
    "invalid_api_key": "it doesn't know the key",
    "model_not_found": "it has no such model",
    "unsupported_parameter": "the model doesn't take one of the parameters",
}
"""What the `code` in the body of an error means, of those that are worth telling apart."""


def refused(error: openai.APIStatusError) -> SummaryFailed:
    """The failure that an answer with a status other than 2xx is."""
    status = error.status_code
    code = error.code if error.code in CODES else None
    meaning = CODES[code] if code else MEANINGS.get(status)
    reason = f"the endpoint answered {status}" + (f": {meaning}" if meaning else "")
    return SummaryFailed(
        _kind_of(status, code), reason, retry_after_seconds=retry_after(error.response.headers)
    )


def _kind_of(status: int, code: str | None) -> FailureKind:
    if status == 429:
        # Without credit the same request fails for ever: somebody has to do something.
        return "rejected" if code == "insufficient_quota" else "rate_limited"
    if status in (408, 504):
        return "timeout"
    return "server_error" if status >= 500 or status in (409, 425) else "rejected"


def lost(error: Exception) -> SummaryFailed:
    """The failure that it is when no whole answer came, though there was time."""
    return SummaryFailed(
        "connection_lost",
        f"the endpoint can't be reached, or went away in the middle ({type(error).__name__})",
    )


def retry_after(headers: httpx2.Headers, *, now: datetime | None = None) -> float | None:
    """Seconds that the endpoint asks to wait, as a number or as a date; None: it doesn't say."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        seconds = (at - (now or datetime.now(UTC))).total_seconds()
    if math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)

"""What the Hub's client raises when the Hub cannot be reached, and this library's error for it."""

from __future__ import annotations

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from hf_losses.messages import UsageError

# The base of all errors of a connection: httpx's or, since huggingface_hub 2, httpx2's.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


class HubUnreachable(UsageError, OSError):
    """The Hub cannot be reached; the message says what to do until it can."""


def is_temporary(error: BaseException) -> bool:
    """Whether the same request may succeed later.

    Args:
        error: What a request to the Hub raised.
    """
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 409, 429) or error.response.status_code >= 500
    return isinstance(error, HTTPError)


def outage(error: BaseException) -> BaseException | None:
    """The reason why the Hub could not be reached; None if an error has another reason.

    Args:
        error: What `hf_hub_download` raised.
    """
    # With no connection and no cached file it raises this error, caused by that of the connection.
    reason = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if reason is None or not (isinstance(reason, OfflineModeIsEnabled) or is_temporary(reason)):
        return None
    return reason

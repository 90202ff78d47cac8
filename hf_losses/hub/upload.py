"""The upload to the Hub: repositories, commits, new tries, and errors in words."""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from time import sleep
from typing import TypeVar

from huggingface_hub import CommitInfo, HfApi, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    parse_ratelimit_headers,
)

from hf_losses import __version__
from hf_losses.hub.saved_run import LOSS_FILE
from hf_losses.messages import UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds before each new try of what the Hub's client does not itself try again.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)

# Seconds without a byte after which a connection counts as broken: the client would wait for ever.
TIMEOUT = 120.0

# httpx's or, since huggingface_hub 2, httpx2's.
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


class HubUnreachable(UsageError, OSError):
    """The Hub did not answer, however often it was asked; the message says how to go on later."""


def upload(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    overwrite: bool = False,
    then: str = "",
) -> CommitInfo:
    """Uploads a staged folder in one commit, trying again where that may help.

    Args:
        folder: What `stage` made.
        repo: Name of the repository, made if there is none.
        private: Whether a new one is private.
        revision: Branch.
        commit_message: The commit's first line.
        token: None takes the one of this machine.
        overwrite: Whether it may take the place of a model that was published by other means.
        then: What an error's message ends with.

    Returns:
        The commit; the last one if nothing has changed.

    Raises:
        ValueError: If the Hub refuses it: no token, no rights, name taken.
        OSError: If the Hub cannot be reached.
    """
    with explained(repo, then):
        repo, files = _open(repo, private, revision, token, overwrite)
        # Weights under a name that this model no longer has would be loaded instead of its own.
        weights = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
        stale = [
            name
            for name in files
            if "/" not in name and name.endswith(weights) and not os.path.exists(f"{folder}/{name}")
        ]
        return retried(
            lambda: hub_api(token).upload_folder(
                repo_id=repo,
                folder_path=os.fspath(folder),
                commit_message=commit_message or "Publish the model",
                revision=revision,
                delete_patterns=stale or None,
            )
        )


def open_repo(
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    overwrite: bool = False,
    then: str = "",
) -> str:
    """Makes a repository, or makes sure that an existing one is there for this model.

    Args:
        repo: Its name; without an owner it is the token's.
        private: Whether a new one is private.
        revision: Branch to look at.
        token: None takes the one of this machine.
        overwrite: Whether it may hold a model that was published by other means.
        then: What an error's message ends with.

    Returns:
        Its name with the owner.

    Raises:
        ValueError: If the Hub refuses it, or it holds such a model.
        OSError: If the Hub cannot be reached.
    """
    with explained(repo, then):
        return _open(repo, private, revision, token, overwrite)[0]


def _open(
    repo: str, private: bool | None, revision: str | None, token: str | None, overwrite: bool
) -> tuple[str, list[str]]:
    """The repository's full name and its files."""
    api = hub_api(token)
    repo = retried(lambda: api.create_repo(repo, private=private, exist_ok=True)).repo_id
    info = retried(lambda: api.model_info(repo, revision=revision, timeout=TIMEOUT))
    files = [file.rfilename for file in info.siblings or []]
    ours = LOSS_FILE in files or not {*files} - {".gitattributes", "README.md", "LICENSE"}
    if not ours and not overwrite:
        raise UsageError(
            f"the name {repo} is taken: there is a model that hf_losses did not publish (no "
            f"{LOSS_FILE}); choose another name, or put this model in its place by `hf-losses "
            "publish` with --overwrite"
        )
    return repo, files


def hub_api(token: str | None) -> HfApi:
    """The client of the Hub.

    Args:
        token: Instead of the one that the user is logged in with.

    Raises:
        ValueError: If there is none.
    """
    if not (token or get_token()):
        raise UsageError(
            "no Hugging Face token: log in by `hf auth login`, or set HF_TOKEN to one with the "
            "right to write (https://huggingface.co/settings/tokens)"
        )
    return HfApi(token=token, library_name="hf_losses", library_version=__version__)


def retried(call: Callable[[], T]) -> T:
    """Makes a call to the Hub, again after a while if what went wrong may pass.

    Args:
        call: A function without arguments.

    Returns:
        What it returns.
    """
    for wait in WAITS:
        session = get_session()
        if session.timeout.read is None:
            session.timeout = TIMEOUT
        try:
            return call()
        except (OSError, RuntimeError, _HTTPError) as error:
            cause = _cause(error)
            if not _may_pass(cause) or _was_retried(cause):
                raise
            wait = _asked_to_wait(cause) or wait
            logger.warning("%s; trying again in %g s", _in_words(cause), wait)
        sleep(wait)
    return call()


def _cause(error: Exception) -> BaseException:
    """What the client's threads wrap in a RuntimeError."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 409, 429) or error.response.status_code >= 500
    return isinstance(error, _HTTPError)  # Not hf_xet's errors: it has tried again itself.


def _was_retried(error: BaseException) -> bool:
    """Whether the client has itself tried this request again, five times, before it gave up."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "http_backoff" for frame in frames)


def _asked_to_wait(error: BaseException) -> float | None:
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    after = error.response.headers.get("Retry-After", "")
    return float(after) if after.isdigit() else None


def _in_words(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        said = f" ({error.server_message})" if error.server_message else ""
        return f"the Hub answered {error.response.status_code}{said}"
    if _may_pass(error):
        return f"the connection to the Hub failed ({str(error) or type(error).__name__})"
    return " ".join(str(error).split())


@contextlib.contextmanager
def explained(repo: str, then: str) -> Iterator[None]:
    """Turns what the client raises into one sentence that says what to do."""
    ways_out = {
        401: "the token is not valid or has expired: `hf auth login`, or set HF_TOKEN",
        403: f"the token has no right to write to {repo}: take one that has, or another name",
        404: f"there is no {repo}, or no such branch of it, that this token may see",
    }
    try:
        yield
    except (ValueError, OSError, RuntimeError, _HTTPError) as error:
        cause = _cause(error)
        message = _in_words(cause)
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in ways_out:
            message += f": {ways_out[status]}"
        refused = isinstance(cause, ValueError) or (status and not _may_pass(cause))
        kind = UsageError if refused else HubUnreachable
        raise kind(f"{message.rstrip('.')}. {then}" if then else message) from error

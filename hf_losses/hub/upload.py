"""The upload to the Hub: repositories, commits, retries, and errors in plain words."""

from __future__ import annotations

import contextlib
import logging
import os
import re
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
from hf_losses.hub.outage import HTTPError, HubUnreachable, is_temporary
from hf_losses.hub.saved_run import LOSS_FILE
from hf_losses.messages import UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds before each retry of requests that the Hub's client does not retry itself.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)

# What from_pretrained reads, and Trainer's pickle. Old weights under a name that the new model does
# not use would be loaded in its place, and an old adapter on top of it; the rest is the user's.
LOADED = re.compile(
    r"(adapter_)?config\.json|training_args\.bin"
    r"|(pytorch_model|model|adapter_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?"
)

# Seconds without a byte after which a connection counts as broken; by default the client waits
# for ever.
TIMEOUT = 120.0


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
    """Uploads a staged folder in one commit, with retries where they may help.

    Args:
        folder: What `stage` made.
        repo: Name of the repository, made if there is none.
        private: Whether a new repository is private.
        revision: Branch.
        commit_message: The commit's first line.
        token: None takes the token that the user is logged in with.
        overwrite: Whether it may replace a model that was published by other means.
        then: The end of every error message.

    Returns:
        The commit; if nothing has changed, the last one.

    Raises:
        ValueError: If the Hub refuses the upload: no token, no rights, name taken.
        OSError: If the Hub cannot be reached.
    """
    with explained(repo, then):
        repo, files = _open(repo, private, revision, token, overwrite)
        stale = [
            name
            for name in files
            if LOADED.fullmatch(name) and not os.path.exists(f"{folder}/{name}")
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
    """Makes a repository, or checks that an existing one may hold this model.

    Args:
        repo: Its name; without an owner, the token's owner is taken.
        private: Whether a new repository is private.
        revision: Branch whose files are looked at.
        token: None takes the token that the user is logged in with.
        overwrite: Whether it may hold a model that was published by other means.
        then: The end of every error message.

    Returns:
        The repository's name with its owner.

    Raises:
        ValueError: If the Hub refuses it, or it holds a model that was published by other means.
        OSError: If the Hub cannot be reached.
    """
    with explained(repo, then):
        return _open(repo, private, revision, token, overwrite)[0]


def _open(
    repo: str, private: bool | None, revision: str | None, token: str | None, overwrite: bool
) -> tuple[str, list[str]]:
    """Makes or checks the repository; returns its full name and the names of its files."""
    api = hub_api(token)
    repo = retried(lambda: api.create_repo(repo, private=private, exist_ok=True)).repo_id
    info = retried(lambda: api.model_info(repo, revision=revision, timeout=TIMEOUT))
    files = [file.rfilename for file in info.siblings or []]
    usable = LOSS_FILE in files or not {*files} - {".gitattributes", "README.md", "LICENSE"}
    if not usable and not overwrite:
        raise UsageError(
            f"the name {repo} is taken: there is a model that hf_losses did not publish (no "
            f"{LOSS_FILE}); choose another name, or put this model in its place by `hf-losses "
            "publish` with --overwrite"
        )
    return repo, files


def hub_api(token: str | None) -> HfApi:
    """The client of the Hub.

    Args:
        token: None takes the token that the user is logged in with.

    Raises:
        ValueError: If there is no token.
    """
    if not (token or get_token()):
        raise UsageError(
            "no Hugging Face token: log in by `hf auth login`, or set HF_TOKEN to one with the "
            "right to write (https://huggingface.co/settings/tokens)"
        )
    return HfApi(token=token, library_name="hf_losses", library_version=__version__)


def retried(call: Callable[[], T]) -> T:
    """Makes a call to the Hub, and retries it after errors that may be temporary.

    Args:
        call: A function without arguments.

    Returns:
        What the function returns.
    """
    for wait in WAITS:
        session = get_session()
        if session.timeout.read is None:
            session.timeout = TIMEOUT
        try:
            return call()
        except (OSError, RuntimeError, HTTPError) as error:
            cause = _cause(error)
            # hf_xet's errors do not count as temporary: it has retried itself.
            if not is_temporary(cause) or _was_retried(cause):
                raise
            wait = _requested_wait(cause) or wait
            logger.warning("%s; trying again in %g s", _in_words(cause), wait)
        sleep(wait)
    return call()


def _cause(error: Exception) -> BaseException:
    """The error itself, or the one that the client's threads have wrapped in a RuntimeError."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error


def _was_retried(error: BaseException) -> bool:
    """Whether the client itself has retried this request, which it does five times."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name == "http_backoff" for frame in frames)


def _requested_wait(error: BaseException) -> float | None:
    """The seconds that the Hub's answer asks to wait; None if it asks for none."""
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    after = error.response.headers.get("Retry-After", "")
    return float(after) if after.isdigit() else None


def _in_words(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        message = f" ({error.server_message})" if error.server_message else ""
        return f"the Hub answered {error.response.status_code}{message}"
    if is_temporary(error):
        return f"the connection to the Hub failed ({str(error) or type(error).__name__})"
    return " ".join(str(error).split())


def _is_expected(error: BaseException) -> bool:
    """Whether an error says that the Hub refuses or fails; any other is a bug."""
    if isinstance(error, (UsageError, OSError, HTTPError)):
        return True
    # The client, and hf_xet below it, also raise plain ValueErrors and RuntimeErrors.
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    in_client = str(frame.f_globals["__name__"]).startswith("huggingface_hub.")
    return in_client and isinstance(error, (ValueError, RuntimeError))


@contextlib.contextmanager
def explained(repo: str, then: str) -> Iterator[None]:
    """Turns the client's errors into one sentence that says what to do; others pass unchanged.

    Args:
        repo: The repository, for the message.
        then: The end of the message.

    Raises:
        UsageError: If the Hub refuses what was asked.
        HubUnreachable: If the Hub cannot be reached, or its answer may be temporary.
    """
    ways_out = {
        401: "the token is not valid or has expired: `hf auth login`, or set HF_TOKEN",
        403: f"the token has no right to write to {repo}: take one that has, or another name",
        404: f"there is no {repo}, or no such branch of it, that this token may see",
    }
    try:
        yield
    except (ValueError, OSError, RuntimeError, HTTPError) as error:
        cause = _cause(error)
        if not _is_expected(cause):
            raise
        message = _in_words(cause)
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in ways_out:
            message += f": {ways_out[status]}"
        refused = isinstance(cause, ValueError) or (status and not is_temporary(cause))
        kind = UsageError if refused else HubUnreachable
        raise kind(f"{message.rstrip('.')}. {then}" if then else message) from error

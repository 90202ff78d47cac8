"""A finished run on the Hub: what of it is published, without what is private, and how."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from time import sleep
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, HfApi, get_session, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    parse_ratelimit_headers,
    validate_repo_id,
)
from safetensors import SafetensorError, safe_open
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_losses import __version__
from hf_losses.hub.card import write_card
from hf_losses.hub.saved_run import ARGUMENTS_FILE, LOSS_FILE
from hf_losses.messages import UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds before each new try of what the Hub's client does not itself try again.
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
# Seconds without a byte after which a connection counts as broken: the client would wait for ever.
TIMEOUT = 120.0

# Pickles are not published: they run code, and that of the training arguments holds the token.
TEXTS = (".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".tsv", ".csv", ".jinja", ".py")
OTHERS = (".safetensors", ".png", ".svg", ".model", ".spm", ".tiktoken")
PRIVATE = ("checkpoint-*", "_*", ".*", "runs", "wandb", "mlruns")
# What looks like a path in these is a word.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
# Keys whose value names a model; if that was a folder, its last part says enough.
NAMES = ("name_or_path", "_name_or_path", "base_model_name_or_path", "best_model_checkpoint")
# What a training goes on from, as `hub_strategy="checkpoint"` asks for.
STATE = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "*_states.pt", "latest")
TOKEN = re.compile(rb"\bhf_[A-Za-z]{34}\b")
DRY_RUN = ".hf_losses_dry_run"

# httpx's or, since huggingface_hub 2, httpx2's.
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
_background = ThreadPoolExecutor(1)


def publish(
    run_dir: str | os.PathLike[str],
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    overwrite: bool = False,
    checkpoint: str | None = None,
    blocking: bool = True,
) -> Any:
    """Uploads a finished run; what is there already is not uploaded again.

    Args:
        run_dir: A folder that `save_model` or a checkpoint of `LossTrainer` wrote. It stays as it
            is.
        repo: Name of the repository, made if there is none.
        private: Whether a new repository is private; None takes the account's default.
        revision: Branch; None is `main`.
        commit_message: The commit's first line.
        token: None takes the one of `hf auth login` or `HF_TOKEN`.
        overwrite: Whether it may take the place of a model that was published by other means.
        checkpoint: Folder of the repository for what a training goes on from, such as the
            optimizer's state. None leaves that out.
        blocking: Whether to wait for the upload.

    Returns:
        The `CommitInfo`, or without waiting a `Future` of it.

    Raises:
        ValueError: If the folder is no finished run, holds a token, or the Hub refuses it.
        OSError: If the Hub cannot be reached. Like the former, it names the command that resumes.
    """
    check_run(run_dir)
    validate_repo_id(repo)  # Its HFValidationError is a ValueError.
    command = _command(run_dir, repo, private, revision, overwrite)
    then = f"The local files are whole; to resume: {command}"
    # Beside the run hard links are cheap, and nobody removes it together with an old checkpoint.
    place = Path(run_dir).absolute().parent
    folder = tempfile.TemporaryDirectory(
        prefix="_publish-", dir=place if os.access(place, os.W_OK) else None
    )

    def finish() -> CommitInfo:
        with folder:
            return upload(
                folder.name,
                repo,
                private=private,
                revision=revision,
                commit_message=commit_message,
                token=token,
                overwrite=overwrite,
                then=then,
            )

    try:
        if "/" not in repo:
            with _explained(repo, then):
                repo = f"{_retried(lambda: _api(token).whoami())['name']}/{repo}"
        stage(run_dir, folder.name, repo_id=repo, token=token)
        if checkpoint:
            into = Path(folder.name) / checkpoint
            _copy(Path(run_dir), into, lambda name: _matches(name, STATE) or _published(name))
    except BaseException:
        folder.cleanup()
        raise
    return finish() if blocking else _background.submit(finish)


def check_run(run_dir: str | os.PathLike[str]) -> None:
    """Raises a ValueError if a folder holds no model that `LossTrainer` saved, whole.

    Args:
        run_dir: The folder.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise UsageError(f"no folder {str(run_dir)!r}; give the output_dir of a finished run")
    if not (folder / LOSS_FILE).is_file():
        raise UsageError(
            f"{run_dir} has no {LOSS_FILE}, which LossTrainer writes beside a model: give the "
            "output_dir of a finished run, or call trainer.save_model() first"
        )
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = [SAFE_WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if lacking := [name for name in names if not (folder / name).is_file()]:
            raise UsageError(f"{run_dir} lacks {', '.join(lacking)}: save the model again")
    weights = [folder / name for name in names if (folder / name).is_file()]
    if not weights:
        checkpoints = sorted(folder.glob("checkpoint-*"), key=os.path.getmtime)
        instead = f", or publish its last checkpoint, {checkpoints[-1]}" if checkpoints else ""
        raise UsageError(
            f"{run_dir} has no weights ({', '.join(names)}): finish the training{instead}"
        )
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise UsageError(f"{path} is cut short ({error}): save the model again") from error


# ---- What is published ---------------------------------------------------------------------------


def stage(
    run_dir: str | os.PathLike[str],
    into: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    token: str | None = None,
) -> None:
    """Makes the folder that is uploaded: model, tokenizer, results and card, without local paths.

    Args:
        run_dir: A finished run.
        into: The folder; made if it is missing. Weights are hard links where the disk allows it.
        repo_id: The repository that the card speaks of.
        token: The token in use, which no file may hold.

    Raises:
        ValueError: If a file holds a token.
    """
    run_dir, into = Path(run_dir), Path(into)
    _copy(run_dir, into, _published)
    write_card(into, repo_id=repo_id)
    scrub = _Scrub(run_dir)
    secrets = [secret.encode() for secret in (token, get_token()) if secret]
    for path in filter(_is_text, into.rglob("*")):
        if path.suffix == ".md":
            scrub(path)
        content = path.read_bytes()
        if TOKEN.search(content) or any(secret in content for secret in secrets):
            raise UsageError(
                f"{path.relative_to(into)} of {run_dir} holds a Hugging Face token: remove it "
                "there, and revoke it if others have seen it"
            )


def dry_run(
    run_dir: str | os.PathLike[str], repo: str, into: str | os.PathLike[str] | None = None
) -> Path:
    """Writes what would be uploaded to a folder; needs neither a token nor a network.

    Args:
        run_dir: A finished run.
        repo: Name of the repository.
        into: The folder, by default `RUN_DIR-publish`. An earlier dry run there is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If `run_dir` is no finished run, holds a token, or the folder something else.
    """
    check_run(run_dir)
    validate_repo_id(repo)
    folder = Path(into or f"{os.path.normpath(run_dir)}-publish")
    if folder.exists() and not (folder / DRY_RUN).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise UsageError(f"{folder} holds other files: give --dry_run another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / DRY_RUN).touch()
    stage(run_dir, folder, repo_id=repo)
    return folder


def without_paths(value: Any) -> Any:
    """JSON values in which every absolute path, wherever it led, is its last part.

    Args:
        value: What is cleaned; not changed itself.
    """
    return _Scrub(Path.cwd()).json(value, every=True)


def _published(name: str) -> bool:
    return name.endswith(TEXTS + OTHERS)


def _is_text(path: Path) -> bool:
    return path.is_file() and path.suffix in TEXTS


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _copy(run_dir: Path, into: Path, wanted: Callable[[str], bool]) -> None:
    scrub = _Scrub(run_dir)
    for source in sorted(run_dir.rglob("*")):
        name = source.relative_to(run_dir)
        private = any(_matches(part, PRIVATE) for part in name.parts)
        if private or not source.is_file() or not wanted(source.name):
            continue
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".safetensors":
            shutil.copyfile(source, target)
        else:
            try:
                os.link(source.resolve(), target)
            except OSError:  # Another disk, or one without links.
                shutil.copyfile(source, target)
        # The card drops a path that a whole one, not its last part, shows to be one.
        if _is_text(target) and target.name not in (*VOCABULARIES, "README.md"):
            scrub(target)


class _Scrub:
    """Cleans files of the paths of this machine: a path becomes its last part."""

    def __init__(self, run_dir: Path) -> None:
        home = {str(Path.home()), os.path.realpath(Path.home())}
        local = {str(path) for path in (run_dir.absolute(), run_dir.resolve(), Path.cwd())}
        local |= {tempfile.gettempdir(), os.path.realpath(tempfile.gettempdir())}
        roots = sorted((path for path in home | local if len(Path(path).parts) > 1), reverse=True)
        self._home = home
        rest = r"(?:[\\/][^\s\"'<>|:*?`()\[\],;]*)?"
        either = "|".join(map(re.escape, roots))
        self._paths = re.compile(rf"(?<![\w.-])(?:{either})(?![\w.-]){rest}")

    def __call__(self, path: Path) -> None:
        # Whatever the encoding, what is not a path stays.
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        cleaned = self._text(text)
        if path.suffix == ".json":
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(text)  # Escapes hide a path from the search in the text.
                found = self.json(value, every=path.name == ARGUMENTS_FILE)
                cleaned = text if found == value else json.dumps(found, indent=2) + "\n"
        if cleaned != text:
            path.write_text(cleaned, encoding="utf-8", errors="surrogateescape")

    def _text(self, text: str) -> str:
        return self._paths.sub(lambda match: self._last_part(match.group()), text)

    def _last_part(self, path: str) -> str:
        # The last part of the home directory is the user's name.
        return "~" if path.rstrip("\\/") in self._home else PureWindowsPath(path).name

    def json(self, value: Any, key: str = "", every: bool = False) -> Any:
        if isinstance(value, dict):
            return {
                self._text(name): self.json(entry, name, every) for name, entry in value.items()
            }
        if isinstance(value, list):
            return [self.json(entry, key, every) for entry in value]
        if not isinstance(value, str):
            return value
        absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
        if (every and absolute) or (key in NAMES and (absolute or os.path.isdir(value))):
            return self._last_part(value)
        return self._text(value)


# ---- The upload ----------------------------------------------------------------------------------


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
    with _explained(repo, then):
        repo, files = _open(repo, private, revision, token, overwrite)
        # Weights under a name that this model no longer has would be loaded instead of its own.
        weights = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
        stale = [
            name
            for name in files
            if "/" not in name and name.endswith(weights) and not os.path.exists(f"{folder}/{name}")
        ]
        return _retried(
            lambda: _api(token).upload_folder(
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
    with _explained(repo, then):
        return _open(repo, private, revision, token, overwrite)[0]


def _open(
    repo: str, private: bool | None, revision: str | None, token: str | None, overwrite: bool
) -> tuple[str, list[str]]:
    """The repository's full name and its files."""
    api = _api(token)
    repo = _retried(lambda: api.create_repo(repo, private=private, exist_ok=True)).repo_id
    info = _retried(lambda: api.model_info(repo, revision=revision, timeout=TIMEOUT))
    files = [file.rfilename for file in info.siblings or []]
    ours = LOSS_FILE in files or not {*files} - {".gitattributes", "README.md", "LICENSE"}
    if not ours and not overwrite:
        raise UsageError(
            f"the name {repo} is taken: there is a model that hf_losses did not publish (no "
            f"{LOSS_FILE}); choose another name, or put this model in its place by `hf-losses "
            "publish` with --overwrite"
        )
    return repo, files


def _api(token: str | None) -> HfApi:
    if not (token or get_token()):
        raise UsageError(
            "no Hugging Face token: log in by `hf auth login`, or set HF_TOKEN to one with the "
            "right to write (https://huggingface.co/settings/tokens)"
        )
    return HfApi(token=token, library_name="hf_losses", library_version=__version__)


def _command(
    run_dir: str | os.PathLike[str],
    repo: str,
    private: bool | None,
    revision: str | None,
    overwrite: bool,
) -> str:
    """The command line that publishes a run."""
    command = ["hf-losses", "publish", os.fspath(run_dir), "--repo", repo]
    command += ["--private"] if private else []
    command += ["--revision", revision] if revision else []
    command += ["--overwrite"] if overwrite else []
    return shlex.join(command)


def _retried(call: Callable[[], T]) -> T:
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
def _explained(repo: str, then: str) -> Iterator[None]:
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
        kind = ValueError if refused else OSError
        raise kind(f"{message.rstrip('.')}. {then}" if then else message) from error

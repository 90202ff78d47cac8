"""Publishing a finished run: its files are staged without what is private, then uploaded."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    validate_repo_id,
)

from hf_losses.hub.run_folder import STATE, check_run, copy_files, is_published, matches, stage
from hf_losses.hub.upload import explained, hub_api, retried, upload
from hf_losses.messages import UsageError

DRY_RUN = ".hf_losses_dry_run"

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
    """Uploads a finished run; files that the repository holds already are not uploaded again.

    Args:
        run_dir: A folder that `save_model` or a checkpoint of `LossTrainer` wrote. It is not
            changed.
        repo: Name of the repository, made if there is none.
        private: Whether a new repository is private; None takes the account's default.
        revision: Branch; None is `main`.
        commit_message: The commit's first line.
        token: None takes the one of `hf auth login` or `HF_TOKEN`.
        overwrite: Whether the run may replace a model that was published by other means.
        checkpoint: Folder of the repository for what training resumes from, such as the
            optimizer's state. None leaves that out.
        blocking: Whether to wait for the upload.

    Returns:
        The `CommitInfo`; a `Future` of it if `blocking` is False.

    Raises:
        ValueError: If the folder is no finished run or holds a token, or if the Hub refuses it.
        OSError: If the Hub cannot be reached. The errors of the Hub name the command that resumes.
    """
    check_run(run_dir)
    _check_repo(repo)
    command = _command(run_dir, repo, private, revision, overwrite)
    then = f"The local files are whole; to resume: {command}"
    # Beside the run, weights can be hard links, and the folder outlives a deleted old checkpoint.
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
            with explained(repo, then):
                repo = f"{retried(lambda: hub_api(token).whoami())['name']}/{repo}"
        stage(run_dir, folder.name, repo_id=repo, token=token)
        if checkpoint:
            into = Path(folder.name) / checkpoint
            copy_files(Path(run_dir), into, lambda name: matches(name, STATE) or is_published(name))
    except BaseException:
        folder.cleanup()
        raise
    return finish() if blocking else _background.submit(finish)


def dry_run(
    run_dir: str | os.PathLike[str], repo: str, into: str | os.PathLike[str] | None = None
) -> Path:
    """Writes into a folder what would be uploaded; needs neither a token nor a network.

    Args:
        run_dir: A finished run.
        repo: Name of the repository.
        into: The folder, by default `RUN_DIR-publish`. An earlier dry run there is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If `run_dir` is no finished run or holds a token, or `into` holds other files.
    """
    check_run(run_dir)
    _check_repo(repo)
    folder = Path(into or f"{os.path.normpath(run_dir)}-publish")
    if folder.exists() and not (folder / DRY_RUN).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise UsageError(f"{folder} holds other files: give --dry_run another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / DRY_RUN).touch()
    stage(run_dir, folder, repo_id=repo)
    return folder


def _check_repo(repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(str(error)) from error


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

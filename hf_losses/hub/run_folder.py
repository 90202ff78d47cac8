"""Which files of a run's folder are published: model, tokenizer, results and card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import ModelCard, get_token
from safetensors import SafetensorError, safe_open
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from yaml import YAMLError

from hf_losses.hub.card import write_card
from hf_losses.hub.private import TEXTS, TOKEN, VOCABULARIES, Scrub, is_text
from hf_losses.hub.saved_run import ARGUMENTS_FILE, LOSS_FILE, check_record, read_object
from hf_losses.messages import UsageError

OTHERS = (".safetensors", ".png", ".svg", ".model", ".spm", ".tiktoken", ".codes", ".tokenizer")

# What the card is written from.
RECORDS = (
    LOSS_FILE,
    ARGUMENTS_FILE,
    "config.json",
    "adapter_config.json",
    "trainer_state.json",
    "result.json",
)

PRIVATE = ("checkpoint-*", "_*", ".*", "runs", "wandb", "mlruns")

# The files that training resumes from; only `hub_strategy="checkpoint"` publishes them.
STATE = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "*_states.pt", "latest")


def check_run(run_dir: str | os.PathLike[str]) -> None:
    """Raises a ValueError unless a folder holds a complete model that `LossTrainer` saved.

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
    for record in (path for name in RECORDS if (path := folder / name).is_file()):
        read_object(record)
    check_record(folder)
    _check_metadata(folder / "README.md")
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = [SAFE_WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME]
    if index.is_file():
        files = read_object(index).get("weight_map")
        if not isinstance(files, dict):
            raise UsageError(f"{index} is damaged: it names no weights")
        names = sorted(set(files.values()))
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


def _check_metadata(card: Path) -> None:
    """Raises a ValueError if a model card is there whose metadata cannot be read."""
    if not card.is_file():
        return
    try:
        ModelCard.load(card, ignore_metadata_errors=True)
    except (YAMLError, ValueError) as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{card} has metadata that cannot be read: {text}") from error


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
        repo_id: The repository that the card names.
        token: The token in use, which no file may hold.

    Raises:
        ValueError: If a file holds a token.
    """
    run_dir, into = Path(run_dir), Path(into)
    copy_files(run_dir, into, is_published)
    write_card(into, repo_id=repo_id)
    scrub = Scrub(run_dir)
    secrets = [secret.encode() for secret in (token, get_token()) if secret]
    for path in filter(is_text, into.rglob("*")):
        if path.suffix == ".md":
            scrub(path)
        content = path.read_bytes()
        if TOKEN.search(content) or any(secret in content for secret in secrets):
            raise UsageError(
                f"{path.relative_to(into)} of {run_dir} holds a Hugging Face token: remove it "
                "there, and revoke it if others have seen it"
            )


def is_published(name: str) -> bool:
    """Whether a file of this name is published, by its ending."""
    return name.endswith(TEXTS + OTHERS)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name matches one of several shell wildcards."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def copy_files(run_dir: Path, into: Path, wanted: Callable[[str], bool]) -> None:
    """Copies files of a run, cleaned of local paths; weights become hard links where possible.

    Args:
        run_dir: The folder of the run.
        into: The folder for the copies; made where needed.
        wanted: Whether to copy a file of a given name; private files are never copied.
    """
    scrub = Scrub(run_dir)
    for source in sorted(run_dir.rglob("*")):
        name = source.relative_to(run_dir)
        private = any(matches(part, PRIVATE) for part in name.parts)
        if private or not source.is_file() or not wanted(source.name):
            continue
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".safetensors":
            shutil.copyfile(source, target)
        else:
            try:
                os.link(source.resolve(), target)
            except OSError:  # Another file system, or one without hard links.
                shutil.copyfile(source, target)
        # README.md is cleaned only after write_card has read it: in the metadata, write_card leaves
        # out local paths, which it recognises only while they are whole.
        if is_text(target) and target.name not in (*VOCABULARIES, "README.md"):
            scrub(target)

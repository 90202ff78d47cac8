"""The configuration of an image model that is trained from scratch."""

from __future__ import annotations

import json
import re
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as MODELS,
)

from hf_losses.data.images.dataset import ImageData
from hf_losses.messages import UsageError, nearest

# Small enough for a laptop without a GPU.
SMALL_VIT = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
}
LARGEST = 64  # Images up to this side keep their size.


def build_config(
    model_type: str, overrides: str | None, data: ImageData, labels: dict[str, Any]
) -> tuple[PreTrainedConfig, dict[str, int]]:
    """The configuration of a model for images of the data's size, if they are small.

    Args:
        model_type: Architecture, as transformers names it.
        overrides: `key=value,key=value`; values in JSON, strings without quotes.
        data: The images.
        labels: Fields of the configuration that name the classes.

    Returns:
        The configuration, and the size to which images are resized.

    Raises:
        ValueError: If the architecture, a key or a value is not valid, or the images are large and
            no size is given.
    """
    if model_type not in MODELS:
        raise UsageError(
            f"unknown --model_type {model_type!r}.{nearest(model_type, MODELS)} Choose one of: "
            f"{', '.join(sorted(MODELS))}"
        )
    values = parse_overrides(overrides)
    side = values.get("image_size", max(data.size))
    if "image_size" not in values and side > LARGEST:
        width, height = data.size
        raise UsageError(
            f"images of {width}×{height} are large for a model from scratch: give a pretrained "
            "one, as in --model_name_or_path google/vit-base-patch16-224-in21k, or a size, as in "
            "--config_overrides image_size=64"
        )
    if not isinstance(side, int) or side < 1:
        raise UsageError(f"image_size must be a number of pixels, got {side!r}")
    defaults = AutoConfig.for_model(model_type).to_dict()
    for key in values:
        if key not in defaults and key != "image_size":
            raise UsageError(
                f"{model_type} has no setting {key!r}.{nearest(key, defaults)} Settings: "
                f"{', '.join(sorted(defaults))}"
            )
    settings: dict[str, Any] = {"image_size": side} if "image_size" in defaults else {}
    if model_type == "vit":
        # About seven patches a side: 2 pixels each for 8 × 8 digits, 4 for 28 × 28 and 32 × 32.
        patch = max(n for n in range(1, max(2, side // 7) + 1) if side % n == 0)
        settings |= SMALL_VIT | {"patch_size": patch}
    settings |= {key: value for key, value in values.items() if key in defaults}
    try:
        config = AutoConfig.for_model(model_type, **settings, **labels)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UsageError(
            f"--config_overrides {overrides}: {' '.join(str(error).split())}"
        ) from error
    return config, {"height": side, "width": side}


def parse_overrides(text: str | None) -> dict[str, Any]:
    """Reads `hidden_size=64,depths=[1,2],hidden_act=gelu`.

    Args:
        text: Keys and values; lists in brackets.

    Returns:
        The values by key.

    Raises:
        ValueError: If it is not of that form.
    """
    values: dict[str, Any] = {}
    for part in re.split(r",(?![^\[]*\])", text) if text else []:
        key, equals, value = part.strip().partition("=")
        if not equals or not key.isidentifier() or not value:
            raise UsageError(
                f"--config_overrides takes key=value,key=value such as hidden_size=64, got {part!r}"
            )
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values

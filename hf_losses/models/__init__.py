"""Facts about models: their heads, built-in losses, decoder inputs and limits, and loading them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_losses.lazy import attributes

if TYPE_CHECKING:
    from hf_losses.models.generation import generate
    from hf_losses.models.limits import fit_tokenizer, loading, outline, usable_length
    from hf_losses.models.lora import LoraArguments, add_adapter
    from hf_losses.models.pretrained import find_model, load_text_classifier
    from hf_losses.models.scratch import build_config
    from hf_losses.models.small_lm import small_model, small_tokenizer

# The module of each public name, imported with the first use of the name.
_MODULES = {
    "LoraArguments": "models.lora",
    "add_adapter": "models.lora",
    "build_config": "models.scratch",
    "find_model": "models.pretrained",
    "fit_tokenizer": "models.limits",
    "generate": "models.generation",
    "load_text_classifier": "models.pretrained",
    "loading": "models.limits",
    "order_head": "models.pretrained",
    "outline": "models.limits",
    "small_model": "models.small_lm",
    "small_tokenizer": "models.small_lm",
    "usable_length": "models.limits",
}

__all__ = [
    "LoraArguments",
    "add_adapter",
    "build_config",
    "find_model",
    "fit_tokenizer",
    "generate",
    "load_text_classifier",
    "loading",
    "order_head",
    "outline",
    "small_model",
    "small_tokenizer",
    "usable_length",
]

__getattr__ = attributes(__name__, _MODULES)

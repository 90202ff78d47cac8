"""How many tokens of a text a model takes, and which token pads shorter texts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftConfig
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.utils import find_adapter_config_file

from hf_losses.messages import UsageError

# Names of position tables in transformers. Models without one have rotary or relative positions.
TABLE = re.compile(r"(^|\.)(\w*position_embeddings|embed_positions|positions_embed|wpe)(\.|$)")


@contextmanager
def loading(path: str, loader: str) -> Iterator[None]:
    """Turns the errors of a block that loads a model into one sentence.

    Args:
        path: Folder or Hub name that the user gave.
        loader: Name of the class that loads the model.

    Raises:
        UsageError: If the model cannot be loaded.
    """
    try:
        yield
    # Any ValueError: transformers has no class of its own for an unknown architecture, one that the
    # loader does not take, or a tokenizer that it cannot convert.
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot load the model {path!r}: {str(error).splitlines()[0]} --model_name_or_path "
            f"takes a folder or a Hub name that {loader} loads"
        ) from error


def outline(path: str) -> PreTrainedModel:
    """A causal language model without its weights.

    Args:
        path: Folder or Hub name of the model, or of an adapter.

    Raises:
        ValueError: If no such model can be loaded.
    """
    with loading(path, "AutoModelForCausalLM"):
        if adapter := find_adapter_config_file(path):  # It names the model that it adapts.
            path = PeftConfig.from_json_file(adapter)["base_model_name_or_path"]
    with loading(path, "AutoModelForCausalLM"):
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    return model


def longest(model: PreTrainedModel) -> int | None:
    """The largest number of tokens that a model has positions for; None if it takes any number.

    Args:
        model: With or without its weights.
    """
    tensors = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    # CTRL's table is neither a parameter nor a buffer.
    if not any(map(TABLE.search, tensors)) and model.config.model_type != "ctrl":
        return None
    tables = [module for name, module in model.named_modules() if TABLE.search(name)]
    # RoBERTa and its relatives do not use the positions up to the padding token's id.
    padding = [getattr(table, "padding_idx", None) for table in tables]
    unused = max((index + 1 for index in padding if index is not None), default=0)
    positions: int = model.config.get_text_config().max_position_embeddings
    return positions - unused


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: str) -> None:
    """Makes a tokenizer cut texts to the model's limit, and pad shorter ones.

    Args:
        tokenizer: Gets a padding token if it has none, and the model's limit.
        model: Gets the padding token's id.
        path: Folder or name that both come from, for errors.

    Raises:
        ValueError: If there is nothing to pad with, or the model has no embedding for it.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UsageError(
            f"the tokenizer of {path!r} has neither a padding token nor an EOS, to fill up the "
            "shorter texts of a batch: set its pad_token and save it again"
        )
    # Models that read characters, such as CANINE, take any number of them.
    rows = model.config.get_text_config().to_dict().get("vocab_size", math.inf)
    if tokenizer.pad_token_id >= rows:
        raise UsageError(
            f"the padding token {tokenizer.pad_token!r} of {path!r} has the id "
            f"{tokenizer.pad_token_id}, but the model knows {rows} tokens: take another pad_token, "
            "or resize_token_embeddings, and save both again"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    if limit := longest(model):
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)


def usable_length(
    max_length: int, tokenizer: PreTrainedTokenizerBase, args: TrainingArguments
) -> int:
    """The number of tokens after which texts are cut; prints it if fewer than the user asked for.

    Args:
        max_length: The number that the user asked for.
        tokenizer: After `fit_tokenizer`.
        args: Training arguments, which know whether this process prints.

    Raises:
        ValueError: If the special tokens that every text gets leave no room.
    """
    length: int = min(max_length, tokenizer.model_max_length)
    if length <= tokenizer.num_special_tokens_to_add():
        limit = "" if length == max_length else f" (the model takes {length} tokens)"
        raise UsageError(f"--max_length {max_length} leaves no room for a word{limit}")
    if length < max_length and args.process_index == 0:
        print(
            f"Length  {length} tokens, since the model takes no more   [--max_length]", flush=True
        )
    return length

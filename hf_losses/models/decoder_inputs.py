"""What the decoder of an encoder-decoder reads in training: the labels, one step later."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch import Tensor

from hf_losses.messages import UsageError
from hf_losses.models.builtin import is_encoder_decoder, loss_type

# Models that also mask the padding of the inputs that they make from labels. True: the first token
# is never masked.
HIDES_PADDING = {"EncoderDecoderModel": False, "Pix2StructForConditionalGeneration": True}


def decoder_inputs(model: Any, labels: Tensor) -> dict[str, Tensor]:
    """The inputs that the model would make for its decoder if it were given the labels.

    Args:
        model: Any model without wrappers.
        labels: Token ids `[B, T]`; -100 where there is no label.

    Returns:
        `decoder_input_ids` `[B, T]`, and for a few models their `decoder_attention_mask`; empty
        for a model without a decoder that reads them.

    Raises:
        ValueError: If it is not known how the model would make them, or its config lacks the
            tokens that this takes.
    """
    if loss_type(model) not in ("ForConditionalGeneration", "ForMaskedLM"):
        return {}
    # The forward of a subclass may take **kwargs and pass them on, so every class counts.
    classes = type(model).__mro__
    forwards = [
        inspect.signature(vars(cls)["forward"]) for cls in classes if "forward" in vars(cls)
    ]
    reads_ids = any("decoder_input_ids" in forward.parameters for forward in forwards)
    if not reads_ids or not is_encoder_decoder(model):
        return {}
    # BLIP-2 and its relatives pass the labels to the encoder-decoder that they contain.
    maker = getattr(model, "language_model", model)
    if hasattr(maker, "prepare_decoder_input_ids_from_labels"):
        ids = maker.prepare_decoder_input_ids_from_labels(labels=labels)
    elif hasattr(maker, "_shift_right"):
        ids = maker._shift_right(labels)
    else:
        ids = _shift_tokens_right(model, labels)
    inputs = {"decoder_input_ids": ids}
    for name in (cls.__name__ for cls in classes):
        if name in HIDES_PADDING:
            mask = ids.ne(model.config.pad_token_id).long()
            if HIDES_PADDING[name]:
                mask[:, 0] = 1
            inputs["decoder_attention_mask"] = mask
    return inputs


def _shift_tokens_right(model: Any, labels: Tensor) -> Tensor:
    """Calls the function of this name in the model's own file, with the tokens of its config."""
    files = (vars(sys.modules[cls.__module__]) for cls in type(model).__mro__)
    shift = next((f["shift_tokens_right"] for f in files if "shift_tokens_right" in f), None)
    if shift is None:
        raise UsageError(
            f"it is not known what the decoder of {type(model).__name__} reads while it learns its "
            "labels: put decoder_input_ids into the batch (in the data collator)"
        )
    config = model.config
    tokens = {}
    for name in list(inspect.signature(shift).parameters)[1:]:
        # Florence-2 has these tokens in the config of its text model.
        tokens[name] = getattr(config if hasattr(config, name) else config.text_config, name)
        if tokens[name] is None:
            raise UsageError(
                f"the decoder of {type(model).__name__} reads its labels one step later, but its "
                f"config has no {name}: set it"
            )
    ids: Tensor = shift(labels, **tokens)
    return ids

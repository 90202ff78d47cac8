"""What the loss is that a model of transformers computes from its labels: plain, or another.

A model's own class is the last word: its name says which loss transformers gives it, but some
classes compare other labels, add terms, or have another objective altogether. The tables here hold
all of those in transformers 5.23; `tests/test_builtin_losses.py` reads the source of every class of
the installed version and fails when one is missing.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from torch import Tensor

from hf_losses.messages import UsageError

IGNORE = -100

# Heads to which transformers gives no name of a loss: the one whose loss they have.
NAMELESS = {
    **dict.fromkeys(
        (
            "BertGenerationDecoder",
            "BertLMHeadModel",
            "BlipTextLMHeadModel",
            "CTRLLMHeadModel",
            "EvollaForProteinText2Text",
            "GPT2LMHeadModel",
            "IdeficsForVisionText2Text",
            "ImageGPTForCausalImageModeling",
            "NemotronH_Omni_Reasoning_V3",
            "OpenAIGPTLMHeadModel",
            "ReformerModelWithLMHead",
        ),
        "ForCausalLM",
    ),
    **dict.fromkeys(
        (
            "EncoderDecoderModel",
            "MarianMTModel",
            "SpeechEncoderDecoderModel",
            "SpeechT5ForSpeechToText",
            "VisionEncoderDecoderModel",
            *(
                f"Seamless{version}{task}"
                for version in ("M4T", "M4Tv2")
                for task in (
                    "ForSpeechToSpeech",
                    "ForSpeechToText",
                    "ForTextToSpeech",
                    "ForTextToText",
                    "Model",
                )
            ),
        ),
        "ForConditionalGeneration",
    ),
    **dict.fromkeys(
        ("FlaubertWithLMHeadModel", "XLMWithLMHeadModel", "XLNetLMHeadModel"), "ForMaskedLM"
    ),
    # One class per row, or per entity, whatever config.problem_type says.
    **dict.fromkeys(
        (
            "BridgeTowerForImageAndTextRetrieval",
            "LukeForEntityClassification",
            "LukeForEntityPairClassification",
            "LukeForEntitySpanClassification",
            "ViltForImagesAndTextClassification",
            "VisualBertForVisualReasoning",
        ),
        "ForTokenClassification",
    ),
}
NAMELESS_ENDINGS = ("ForMultipleChoice", "ForNextSentencePrediction")
KINDS = re.compile(
    "For((Sequence|Image|Video|Audio|Token)Classification|CausalLM|MaskedLM|ConditionalGeneration"
    "|QuestionAnswering|SemanticSegmentation|Segmentation|ObjectDetection|CTC)"
)

# Heads whose name asks for a plain loss, and what theirs is instead.
OTHER_LOSS = {
    "BrosSpadeELForTokenClassification": "of links between tokens",
    "CsmDepthDecoderForCausalLM": "of labels that begin one step later than its logits",
    "GitForCausalLM": "of the logits behind those of the image",
    "HiggsAudioV2ForConditionalGeneration": "a sum over codebooks and a head for text",
    "MusicgenForCausalLM": "a mean over codebooks",
    "MusicgenForConditionalGeneration": "a mean over codebooks",
    "MusicgenMelodyForCausalLM": "a mean over codebooks",
    "MusicgenMelodyForConditionalGeneration": "a mean over codebooks",
    "ProphetNetForCausalLM": "of several streams, each one token further ahead",
    "ProphetNetForConditionalGeneration": "of several streams, each one token further ahead",
    "ShieldGemma2ForImageClassification": "that of the language model within",
    "VibeVoiceForConditionalGeneration": "a sum with the loss of its diffusion head",
}

# Heads with a field of the config that makes their loss another, and its value for the plain one.
SETTINGS: dict[str, tuple[str, Any]] = {
    "BambaForCausalLM": ("z_loss_coefficient", 0),
    "BlipForConditionalGeneration": ("label_smoothing", 0),
    "BlipTextLMHeadModel": ("label_smoothing", 0),
    "FlaubertWithLMHeadModel": ("asm", False),
    "ModernBertForMaskedLM": ("sparse_pred_ignore_index", IGNORE),
    "NllbMoeForConditionalGeneration": ("output_router_logits", False),
    "XLMWithLMHeadModel": ("asm", False),
}

# Decoders that are called causal but compare their logits with the labels of the same positions.
UNSHIFTED = {
    "BartForCausalLM",
    "BigBirdPegasusForCausalLM",
    "BlenderbotForCausalLM",
    "BlenderbotSmallForCausalLM",
    "CpmAntForCausalLM",
    "MBartForCausalLM",
    "MarianForCausalLM",
    "MvpForCausalLM",
    "PLBartForCausalLM",
    "PegasusForCausalLM",
    "TrOCRForCausalLM",
    "WhisperForCausalLM",
}

# Heads that leave out the labels where this input is 0.
MASKED = {
    "BioGptForTokenClassification": "attention_mask",
    "BrosForTokenClassification": "bbox_first_token_mask",
    "GraniteSpeechForConditionalGeneration": "attention_mask",
    "GraniteSpeechPlusForConditionalGeneration": "attention_mask",
    "MraForTokenClassification": "attention_mask",
    "Qwen2AudioForConditionalGeneration": "attention_mask",
    "XLMRobertaXLForTokenClassification": "attention_mask",
    "YosoForTokenClassification": "attention_mask",
}

# Heads for which labels of floats mean something else than for others of their kind, or nothing.
CLASSES_ALONE = {
    "LukeForEntityClassification",
    "LukeForEntityPairClassification",
    "LukeForEntitySpanClassification",
}
PROBABILITIES = {"DebertaForSequenceClassification", "DebertaV2ForSequenceClassification"}


def loss_type(model: Any) -> str | None:
    """The kind of head by which transformers chooses a loss, also where it does not name one.

    Args:
        model: The model without wrappers.

    Returns:
        None for a model that transformers does not know.
    """
    named: str | None = getattr(model, "loss_type", None)
    if named is not None:
        return named
    # Transformers asks the name of a subclass alone, which may be any.
    for cls in type(model).__mro__:
        if not cls.__module__.startswith("transformers."):
            continue
        if cls.__name__ in NAMELESS:
            return NAMELESS[cls.__name__]
        if cls.__name__.endswith(NAMELESS_ENDINGS):
            return "ForTokenClassification"
        if found := KINDS.search(cls.__name__):
            return found.group()
    return None


def shifts_labels(model: Any) -> bool:
    """Whether the model's loss compares the logits of a position with the label of the next one.

    Args:
        model: The model without wrappers.
    """
    if loss_type(model) not in ("ForCausalLM", "ForConditionalGeneration"):
        return False
    return not UNSHIFTED.intersection(_names(model)) and not is_encoder_decoder(model)


def is_encoder_decoder(model: Any) -> bool:
    """Whether the labels are what a decoder writes, and so belong to the positions they stand at.

    Args:
        model: A model of transformers without wrappers; also one around an encoder-decoder.
    """
    config = model.config
    return bool(
        config.is_encoder_decoder or config.get_text_config(decoder=True).is_encoder_decoder
    )


def check_builtin_loss(model: Any) -> None:
    """Raises a ValueError for a class of transformers whose own loss is another than a plain one.

    A subclass with a `forward` of its own, and a class that transformers does not know, are taken
    as they are.

    Args:
        model: The model without wrappers.
    """
    if not _is_transformers(model):
        return
    head = type(model).__name__
    for name in _names(model):
        if name in OTHER_LOSS:
            raise UsageError(
                f"the loss of {head} is not one of its logits and 'labels', but {OTHER_LOSS[name]}:"
                " train it with the stock Trainer"
            )
        if name in SETTINGS:
            field, plain = SETTINGS[name]
            found = getattr(model.config.get_text_config(), field)
            if found != plain:
                raise UsageError(
                    f"{field}={found!r} makes the loss of {head} another than one of its logits "
                    f"and 'labels': set it to {plain!r} in the model's config, or train it with "
                    "the stock Trainer"
                )
    if loss_type(model) is None:
        raise UsageError(
            f"{head} is not a model whose loss is one function of its logits and 'labels': choose "
            "one with a head, or give your subclass a forward of its own"
        )


def check_batch(model: Any, inputs: dict[str, Any], labels: Tensor) -> None:
    """Raises a ValueError for a batch of which the model's own loss would be another.

    Args:
        model: The model without wrappers, before `settle_problem_type` has seen the labels.
        inputs: The batch without its labels.
        labels: Those labels.
    """
    head, names = type(model).__name__, set(_names(model))
    others = [name for name in inputs if "label" in name]
    if others and _is_transformers(model):
        raise UsageError(
            f"the batch has also {', '.join(others)}, which would be left out of the loss of "
            f"{head}: drop {'it' if len(others) == 1 else 'them'}, or use the stock Trainer"
        )
    for mask in (MASKED[name] for name in names & MASKED.keys()):
        kept = inputs.get(mask)
        if kept is not None and (labels.ne(IGNORE) & kept.eq(0)).any():
            raise UsageError(
                f"{head} leaves out the labels where {mask} is 0, but Trainer counts them: set "
                f"them to {IGNORE}"
            )
    if not labels.is_floating_point():
        return
    if names & CLASSES_ALONE:
        raise UsageError(
            f"float labels are several yes/no labels for {head}, which this trainer does not know: "
            "give whole numbers, one class each, or use the stock Trainer"
        )
    if names & PROBABILITIES and model.config.problem_type is None and model.config.num_labels > 1:
        raise UsageError(
            f"float labels are probabilities of the classes for {head}, and several yes/no labels "
            "for other models: set config.problem_type to 'single_label_classification' or "
            "'multi_label_classification'"
        )


def auxiliary_weight(model: Any) -> float:
    """By what the model's own loss multiplies the `aux_loss` of its mixture of experts.

    Args:
        model: The model without wrappers.

    Raises:
        ValueError: If the model does not say.
    """
    text = model.config.get_text_config()
    for holder, name in (
        (model, "router_aux_loss_coef"),
        (model, "aux_loss_coef"),
        (text, "router_aux_loss_coef"),
    ):
        weight: float | None = getattr(holder, name, None)
        if weight is not None:
            return weight
    raise UsageError(
        f"{type(model).__name__} returns an aux_loss but names no router_aux_loss_coef to weigh it "
        "by: set config.output_router_logits=False"
    )


def outputs_shift(outputs: Any, labels: Tensor) -> bool:
    """Whether labels are the next tokens, as far as a model's outputs alone can say it.

    Args:
        outputs: A `ModelOutput`.
        labels: Of any shape.

    Raises:
        ValueError: If it is not certain, or if the model's decoder may have had wrong inputs.
    """
    logits, name = outputs["logits"], type(outputs).__name__
    if labels.is_floating_point() or labels.dim() < 2 or logits.dim() < 3:
        return False
    if "language_model_outputs" in outputs:  # BLIP-2 around any language model.
        return outputs_shift(outputs["language_model_outputs"], labels)
    if "Seq2Seq" in name:
        raise UsageError(
            f"{name} is of an encoder-decoder, which has run without labels by now: if the batch "
            "has decoder_input_ids (DataCollatorForSeq2Seq(tokenizer, model=model) makes them), "
            "say so by shift_labels=False; else use LossTrainer, which makes them itself"
        )
    if name in NEXT_TOKEN or (
        "CausalLMOutput" in name
        and name not in UNCERTAIN
        and not name.startswith(NOT_PLAIN)
        and UNSHIFTED_LOOKALIKE not in sys.modules
    ):
        return True
    if any(kind in name for kind in SAME_POSITION):
        return False
    raise UsageError(
        f"{name} does not say whether labels are the next tokens: give compute_loss_func "
        "shift_labels=True (a causal language model, whose labels are its input_ids) or "
        "shift_labels=False (labels that belong to the positions they stand at), or use "
        "LossTrainer, which sees the model"
    )


# Parts of the names of output classes with a label for each position.
SAME_POSITION = (
    "MaskedLMOutput",
    "TokenClassif",
    "SequenceClassif",
    "ImageClassif",
    "MultipleChoice",
    "PerceiverClassifierOutput",
    "XLNetLMHeadModelOutput",
)
# Output classes of causal language models that are not called CausalLMOutput….
NEXT_TOKEN = (
    "BlipForConditionalGenerationModelOutput",
    "Kosmos2ForConditionalGenerationModelOutput",
    "Kosmos2_5ForConditionalGenerationModelOutput",
    "ReformerModelWithLMHeadOutput",
)
# Of GPT-2 and of BART's decoder; of OpenAI GPT and of models for CTC.
UNCERTAIN = ("CausalLMOutputWithCrossAttentions", "CausalLMOutput")
# CpmAnt returns what Llama returns but does not shift. Its file is read only for its models.
UNSHIFTED_LOOKALIKE = "transformers.models.cpmant.modeling_cpmant"
NOT_PLAIN = ("HiggsAudioV2", "VibeVoiceCausalLM")


def _is_transformers(model: Any) -> bool:
    """Whether its `forward` is one of transformers, not of a subclass or a model of the user's."""
    forward = next(cls for cls in type(model).__mro__ if "forward" in vars(cls))
    return forward.__module__.startswith("transformers.")


def _names(model: Any) -> list[str]:
    return [cls.__name__ for cls in type(model).__mro__]

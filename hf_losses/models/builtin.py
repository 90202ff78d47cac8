"""Which loss a model of transformers computes from its labels.

Only a plain loss, one function of the logits and the labels of a batch, can be replaced.

The name of a model's class says which loss transformers gives it, but some classes compare other
labels, add terms, or have another objective altogether. The tables here list all of those in
transformers 5.23; `tests/models/test_builtin_sources.py` reads the source of every class of the
installed version and fails when one is missing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_losses.losses.registry import IGNORE_INDEX
from hf_losses.messages import UsageError
from hf_losses.models.forwards import is_transformers

# Heads for which transformers names no loss, and the name of the loss that they compute.
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
    # These predict one class per row or per entity, whatever config.problem_type says.
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

# Heads whose name suggests a plain loss, and the loss that they compute instead.
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

# Heads whose loss depends on a field of the config, and the value with which the loss is plain.
SETTINGS: dict[str, tuple[str, Any]] = {
    "BambaForCausalLM": ("z_loss_coefficient", 0),
    "BlipForConditionalGeneration": ("label_smoothing", 0),
    "BlipTextLMHeadModel": ("label_smoothing", 0),
    "FlaubertWithLMHeadModel": ("asm", False),
    "ModernBertForMaskedLM": ("sparse_pred_ignore_index", IGNORE_INDEX),
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

# Heads that leave out the labels at positions where this input is 0.
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

# Heads whose float labels this trainer refuses; and heads that take them for probabilities of the
# classes, where others of their kind take them for several yes/no labels.
CLASSES_ALONE = {
    "LukeForEntityClassification",
    "LukeForEntityPairClassification",
    "LukeForEntitySpanClassification",
}
PROBABILITIES = {"DebertaForSequenceClassification", "DebertaV2ForSequenceClassification"}


def loss_type(model: Any) -> str | None:
    """The name by which transformers chooses a model's loss, such as `ForCausalLM`.

    Args:
        model: The model without wrappers.

    Returns:
        None for a model that neither transformers nor the tables above know.
    """
    declared: str | None = getattr(model, "loss_type", None)
    # A user's module may have an attribute of this name for something else.
    if declared is not None and KINDS.search(str(declared)):
        return declared
    # Transformers looks at the class's own name alone, and a user's subclass may have any.
    for cls in type(model).__mro__:
        if not cls.__module__.startswith("transformers."):
            continue
        if cls.__name__ in NAMELESS:
            return NAMELESS[cls.__name__]
        if cls.__name__.endswith(NAMELESS_ENDINGS):
            return "ForTokenClassification"
        if match := KINDS.search(cls.__name__):
            return match.group()
    return None


def with_known_loss(model: Any) -> Any:
    """The model, or the one of transformers with a head that a user's module is built around.

    Args:
        model: The model without wrappers.

    Returns:
        The model itself if transformers knows its loss, or knows none within it, or several. Of
        models with one kind of loss, such as a student and its teacher, the first.
    """
    if loss_type(model) is not None:
        return model
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        inside = name.startswith(tuple(f"{above}." for above in found))
        if not inside and hasattr(module, "config") and loss_type(module) is not None:
            found[name] = module
    kinds = {loss_type(module) for module in found.values()}
    return model if len(kinds) != 1 else next(iter(found.values()))


def shifts_labels(model: Any) -> bool:
    """Whether the model's loss compares the logits of a position with the label of the next one.

    Args:
        model: The model without wrappers.
    """
    model = with_known_loss(model)
    if loss_type(model) not in ("ForCausalLM", "ForConditionalGeneration"):
        return False
    return not UNSHIFTED.intersection(_class_names(model)) and not is_encoder_decoder(model)


def is_encoder_decoder(model: Any) -> bool:
    """Whether a model is an encoder-decoder, whose labels stand at the positions of their logits.

    Args:
        model: A model of transformers without wrappers; it may contain the encoder-decoder.
    """
    config = model.config
    return bool(
        config.is_encoder_decoder or config.get_text_config(decoder=True).is_encoder_decoder
    )


def check_builtin_loss(model: Any) -> None:
    """Raises a ValueError for a class of transformers whose own loss is not a plain one.

    Subclasses with a `forward` of their own, and classes that transformers does not know, are
    accepted unchecked.

    Args:
        model: The model without wrappers.
    """
    if not is_transformers(model):
        return
    head = type(model).__name__
    for name in _class_names(model):
        if name in OTHER_LOSS:
            raise UsageError(
                f"the loss of {head} is not one of its logits and 'labels', but {OTHER_LOSS[name]}:"
                " train it with the stock Trainer"
            )
        if name in SETTINGS:
            field, plain = SETTINGS[name]
            value = getattr(model.config.get_text_config(), field)
            if value != plain:
                raise UsageError(
                    f"{field}={value!r} makes the loss of {head} another than one of its logits "
                    f"and 'labels': set it to {plain!r} in the model's config, or train it with "
                    "the stock Trainer"
                )
    if loss_type(model) is None:
        raise UsageError(
            f"{head} is not a model whose loss is one function of its logits and 'labels': choose "
            "one with a head, or give your subclass a forward of its own"
        )


def counted_labels(model: Any, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """The labels of a batch, -100 where the model's own loss leaves them out for another reason.

    Args:
        model: The model without wrappers.
        inputs: The batch.
        labels: Its labels, not shifted.

    Returns:
        A tensor like `labels`.
    """
    for name in MASKED.keys() & _class_names(model):
        mask = inputs.get(MASKED[name])
        if mask is not None:
            labels = labels.masked_fill(mask == 0, IGNORE_INDEX)
    return labels


def check_batch(model: Any, inputs: dict[str, Any], labels: Tensor) -> None:
    """Raises a ValueError for a batch on which the model's own loss would not be the plain one.

    Args:
        model: The model without wrappers, before `settle_problem_type` has seen the labels.
        inputs: The batch without its labels.
        labels: The labels of the batch.
    """
    head, names = type(model).__name__, set(_class_names(model))
    extra = [name for name in inputs if "label" in name]
    if extra and is_transformers(model):
        raise UsageError(
            f"the batch has also {', '.join(extra)}, which would be left out of the loss of "
            f"{head}: drop {'it' if len(extra) == 1 else 'them'}, or use the stock Trainer"
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
    """The factor by which the model's own loss multiplies the `aux_loss` of its experts.

    Args:
        model: The model without wrappers.

    Raises:
        ValueError: If neither the model nor its config names the factor.
    """
    own, model = not is_transformers(model), with_known_loss(model)
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    for holder, name in (
        (model, "router_aux_loss_coef"),
        (model, "aux_loss_coef"),
        (text_config, "router_aux_loss_coef"),
    ):
        weight: float | None = getattr(holder, name, None)
        if weight is not None:
            return weight
    if own:
        return 0.0  # A user's own, by any name: their loss is compared.
    raise UsageError(
        f"{type(model).__name__} returns an aux_loss but names no router_aux_loss_coef to weigh it "
        "by: set config.output_router_logits=False"
    )


def outputs_shift(outputs: Any, labels: Tensor) -> bool:
    """Whether labels are the next tokens, as far as the class of a model's outputs tells.

    Args:
        outputs: A `ModelOutput`.
        labels: Of any shape.

    Raises:
        ValueError: If the class does not tell, or the model's decoder may have had wrong inputs.
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
# Output classes of causal language models whose names do not contain CausalLMOutput.
NEXT_TOKEN = (
    "BlipForConditionalGenerationModelOutput",
    "Kosmos2ForConditionalGenerationModelOutput",
    "Kosmos2_5ForConditionalGenerationModelOutput",
    "ReformerModelWithLMHeadOutput",
)
# Output classes of models that shift and of models that do not: GPT-2 and BART's decoder return the
# first, OpenAI GPT and models for CTC the second.
UNCERTAIN = ("CausalLMOutputWithCrossAttentions", "CausalLMOutput")
# CpmAnt returns the same class as Llama, but does not shift. Its module is imported only if a
# program uses it.
UNSHIFTED_LOOKALIKE = "transformers.models.cpmant.modeling_cpmant"
NOT_PLAIN = ("HiggsAudioV2", "VibeVoiceCausalLM")


def _class_names(model: Any) -> list[str]:
    """The names of a model's class and of all classes above it."""
    return [cls.__name__ for cls in type(model).__mro__]

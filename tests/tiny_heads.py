"""Tiny random models of many classes of transformers, each with a batch of its own."""

from __future__ import annotations

import torch
import transformers

VOCABULARY = 50
ROWS, LENGTH, TARGETS = 2, 8, 6
IMAGE = 40  # The token in the place of a piece of an image.
TOKENS = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 3}

# The spread of the weights makes every wrong label and every wrong input visible in the loss.
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "pad_token_id": 1,
}
LLAMA = BERT | {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 2}
LAYERS = {
    "vocab_size": VOCABULARY,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
}
BART = (
    TOKENS
    | LAYERS
    | {
        "d_model": 32,
        "max_position_embeddings": 40,
        "init_std": 0.3,
        "dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "forced_eos_token_id": None,
    }
)
T5 = TOKENS | {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 1,
    "num_heads": 2,
}
EYES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 8,
    "patch_size": 4,
}
HEARING = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "conv_dim": (32, 32),
    "conv_stride": (8, 8),
    "conv_kernel": (8, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": VOCABULARY,
}
WHISPER = BART | {
    "num_mel_bins": 16,
    "max_source_positions": 8,
    "max_target_positions": 20,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
MIXTURE = LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 2, "output_router_logits": True}


def _generator():
    return torch.Generator().manual_seed(1)


def _tokens(*shape, generator=None):
    return torch.randint(5, IMAGE, shape, generator=generator or _generator())


def _text():
    ids = _tokens(ROWS, LENGTH)
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _image():
    return {"pixel_values": torch.randn(ROWS, 3, 8, 8, generator=_generator())}


def _classes():
    return {"labels": torch.tensor([1, 0])}


def of_rows():
    return _text() | _classes()


def of_tokens():
    batch = _text()
    labels = batch["input_ids"] % 2
    labels[:, 3] = -100
    return batch | {"labels": labels.masked_fill(batch["attention_mask"] == 0, -100)}


def same_tokens():
    """Labels for a language model: a prompt and the padding have none."""
    batch = _text()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[0, :3] = -100
    return batch | {"labels": labels}


def written():
    """Labels for a decoder, as long as they are, with padding."""
    labels = _tokens(ROWS, TARGETS)
    labels[1, -2:] = -100
    return {"labels": labels}


def translated():
    return _text() | written()


def heard():
    return {"input_features": torch.randn(ROWS, 16, 16, generator=_generator())} | written()


def choices():
    ids = _tokens(ROWS, 2, LENGTH)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | _classes()


def seen_and_read():
    """Four pieces of an image before the text, whose tokens alone have labels."""
    batch = same_tokens() | _image()
    batch["input_ids"][:, :4] = IMAGE
    batch["labels"][:, :4] = -100
    return batch


def _around(kind, within):
    """The config of BLIP-2 around a language model."""
    return {
        "vision_config": EYES,
        "qformer_config": {k: v for k, v in BERT.items() if k != "initializer_range"}
        | {"encoder_hidden_size": 32},
        "text_config": getattr(transformers, kind)(**within),
        "num_query_tokens": 4,
        "image_token_index": IMAGE,
    }


def _opt():
    return {k: v for k, v in BART.items() if k != "decoder_start_token_id"} | {
        "hidden_size": 32,
        "ffn_dim": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 32,
    }


def _pieces():
    """Rows of patches with their place, as Pix2Struct and T5's cousins take them."""
    patches = torch.randn(ROWS, 4, 2 + 12, generator=_generator())
    patches[..., :2] = torch.tensor([[1.0, 1], [1, 2], [2, 1], [2, 2]])
    return {"flattened_patches": patches, "attention_mask": torch.ones(ROWS, 4)}


def _in_boxes():
    boxes = torch.tensor([0.1, 0.1, 0.2, 0.2]).expand(ROWS, LENGTH, 4)
    return translated() | {"bbox": boxes} | _image()


def sound():
    return {"input_values": torch.randn(ROWS, 1000, generator=_generator())}


def _frames(length, width):
    return torch.randn(ROWS, length, width, generator=_generator())


# Of each class: the fields of its config, and its batch.
HEADS = {
    # One answer for a row.
    "BertForSequenceClassification": (BERT, of_rows),
    "DebertaV2ForSequenceClassification": (BERT, of_rows),
    "LlamaForSequenceClassification": (LLAMA, of_rows),
    "T5ForSequenceClassification": (
        T5,
        lambda: of_rows() | {"input_ids": of_rows()["input_ids"].index_fill(1, torch.tensor(5), 2)},
    ),
    "BertForMultipleChoice": (BERT, choices),
    "ViTForImageClassification": (EYES, lambda: _image() | _classes()),
    "VideoMAEForVideoClassification": (
        EYES | {"num_frames": 2},
        lambda: (
            {"pixel_values": torch.randn(ROWS, 2, 3, 8, 8, generator=_generator())} | _classes()
        ),
    ),
    "ASTForAudioClassification": (
        EYES | {"patch_size": 16, "max_length": 32, "num_mel_bins": 32},
        lambda: {"input_values": _frames(32, 32)} | _classes(),
    ),
    "WhisperForAudioClassification": (
        WHISPER | {"classifier_proj_size": 16},
        lambda: {"input_features": _frames(16, 16)} | _classes(),
    ),
    "Wav2Vec2ForSequenceClassification": (
        HEARING | {"classifier_proj_size": 16},
        lambda: sound() | _classes(),
    ),
    # One answer for a token.
    "RobertaForTokenClassification": (BERT, of_tokens),
    "BioGptForTokenClassification": (BERT, of_tokens),
    "BertForMaskedLM": (BERT, same_tokens),
    "XLNetLMHeadModel": (
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 40},
        same_tokens,
    ),
    # The next token, or as BART's decoder alone does it, the same one.
    "LlamaForCausalLM": (LLAMA, same_tokens),
    "MixtralForCausalLM": (MIXTURE, same_tokens),
    "GPT2LMHeadModel": (
        TOKENS | {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 1, "n_head": 2},
        same_tokens,
    ),
    "MambaForCausalLM": (
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4},
        same_tokens,
    ),
    "BartForCausalLM": (BART, same_tokens),
    "TrOCRForCausalLM": (BART, same_tokens),
    # Images and text.
    "LlavaForConditionalGeneration": (
        {
            "vision_config": EYES | {"model_type": "clip_vision_model"},
            "text_config": LLAMA | {"model_type": "llama"},
            "image_token_index": IMAGE,
            "vision_feature_layer": -1,
        },
        seen_and_read,
    ),
    "Blip2ForConditionalGeneration": (lambda: _around("OPTConfig", _opt()), seen_and_read),
    "Blip2ForConditionalGeneration around T5": (
        lambda: _around("T5Config", T5),
        lambda: seen_and_read() | written(),
    ),
    "BlipForConditionalGeneration": (
        {
            "vision_config": EYES,
            "text_config": BERT | {"encoder_hidden_size": 32, "bos_token_id": 2, "sep_token_id": 2},
        },
        lambda: same_tokens() | _image(),
    ),
    # Encoder and decoder; the first of them say how labels become inputs, the others do not.
    "T5ForConditionalGeneration": (T5, translated),
    "BartForConditionalGeneration": (BART, translated),
    "MBartForConditionalGeneration": (BART, translated),
    "EncoderDecoderModel": (
        lambda: (
            TOKENS
            | {
                "encoder": BERT | {"model_type": "bert"},
                "decoder": BERT
                | {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
            }
        ),
        translated,
    ),
    "BlenderbotForConditionalGeneration": (BART, translated),
    "BlenderbotSmallForConditionalGeneration": (BART, translated),
    "M2M100ForConditionalGeneration": (BART, translated),
    "WhisperForConditionalGeneration": (WHISPER, heard),
    "Speech2TextForConditionalGeneration": (
        BART
        | {
            "input_feat_per_channel": 16,
            "input_channels": 1,
            "conv_channels": 32,
            "max_source_positions": 40,
            "max_target_positions": 40,
        },
        lambda: {"input_features": _frames(16, 16)} | written(),
    ),
    "SpeechT5ForSpeechToText": (
        HEARING
        | {k: v for k, v in BART.items() if k not in ("d_model", "init_std")}
        | {"max_speech_positions": 40, "max_text_positions": 40},
        lambda: sound() | written(),
    ),
    "MoonshineForConditionalGeneration": (
        TOKENS
        | {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 40,
            "encoder_num_hidden_layers": 1,
            "decoder_num_hidden_layers": 1,
            "encoder_num_attention_heads": 2,
            "decoder_num_attention_heads": 2,
            "initializer_range": 0.3,
        },
        lambda: sound() | written(),
    ),
    "Pix2StructForConditionalGeneration": (
        {
            "text_config": TOKENS
            | {
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "d_kv": 16,
                "d_ff": 40,
                "num_layers": 1,
                "num_heads": 2,
            },
            "vision_config": {
                "hidden_size": 32,
                "patch_embed_hidden_size": 12,
                "d_kv": 16,
                "d_ff": 40,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "seq_len": 4,
            },
        },
        lambda: _pieces() | written(),
    ),
    "UdopForConditionalGeneration": (
        T5 | {"image_size": 8, "patch_size": 4, "max_2d_position_embeddings": 64},
        _in_boxes,
    ),
    "SeamlessM4TForTextToText": (
        TOKENS | LAYERS | {"hidden_size": 32, "initializer_range": 0.3},
        translated,
    ),
    "Florence2ForConditionalGeneration": (
        {
            "text_config": BART | {"model_type": "bart"},
            "vision_config": {
                "depths": (1,),
                "embed_dim": (32,),
                "num_heads": (2,),
                "num_groups": (2,),
                "patch_size": (3,),
                "patch_stride": (2,),
                "patch_padding": (1,),
                "patch_prenorm": (False,),
                "window_size": 4,
                "projection_dim": 32,
            },
            "image_token_id": IMAGE,
        },
        translated,
    ),
}


def head(name):
    """The model, in evaluation, and its batch."""
    fields, batch = HEADS[name]
    cls = getattr(transformers, name.split()[0])
    config = cls.config_class(**(fields() if callable(fields) else fields))
    transformers.set_seed(0)
    return cls(config).eval(), batch()

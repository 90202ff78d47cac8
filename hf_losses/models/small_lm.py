"""A small Llama from scratch and its tokenizer; neither needs a download or more than a laptop."""

from __future__ import annotations

from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_losses.data.movie_reviews import load_movie_reviews

END, PADDING = "<|end|>", "<|pad|>"
VOCABULARY = 2048
POSITIONS = 512


def small_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained on the shipped movie reviews: the same on every machine."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        load_movie_reviews("movie_reviews")["train"]["sentence"],
        vocab_size=VOCABULARY,
        special_tokens=[END, PADDING],
        show_progress=False,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token=END,
        pad_token=PADDING,
        padding_side="left",  # Generating in batches needs it.
        model_max_length=POSITIONS,
    )


def small_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of two layers with random weights.

    Args:
        tokenizer: What `small_tokenizer` returned.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=POSITIONS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)

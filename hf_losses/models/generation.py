"""Texts that a trained language model writes, on any number of processes."""

from __future__ import annotations

import numpy as np
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase, Trainer


def generate(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
) -> np.ndarray:
    """Continues prompts by the likeliest token at each step; every process does a share of them.

    Args:
        trainer: Holds the model; as many prompts as its evaluation batch has rows are continued
            together.
        tokenizer: With EOS and padding tokens.
        prompts: The token ids of each prompt.
        max_new_tokens: The number of tokens after which a text ends if no EOS has ended it.

    Returns:
        `[N]` texts in the order of the prompts, on every process.
    """
    model, size, texts = trainer.model.eval(), trainer.args.eval_batch_size, []
    accelerator = trainer.accelerator
    processes, rest = accelerator.num_processes, len(prompts) % accelerator.num_processes
    # A sharded model computes on all processes at once: each does as many batches as the others.
    with accelerator.split_between_processes(prompts, apply_padding=True) as share:
        for start in range(0, len(share), size):
            batch = {"input_ids": share[start : start + size]}
            batch = tokenizer.pad(batch, padding_side="left", return_tensors="pt")
            tokens = model.generate(
                **batch.to(model.device),
                max_new_tokens=max_new_tokens,
                synced_gpus=processes > 1,
                do_sample=False,
                repetition_penalty=1.0,  # A checkpoint may have others, which would change it.
                no_repeat_ngram_size=0,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = tokens[:, batch["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    if rest and accelerator.process_index >= rest:
        texts.pop()  # The prompt that filled up the share.
    return np.array(gather_object(texts), dtype=object)

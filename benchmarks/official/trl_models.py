"""Tiny random models and data under the names by which TRL's tests ask the Hub for them."""

import runpy
from pathlib import Path

import datasets
import transformers as t
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from official.models import bytes_and

OWNER = "trl-internal-testing"
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<s>", "</s>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>"),
)
SMALL = {
    "hidden_size": 8,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CHATML = ("<|im_end|>", "<|endoftext|>")
LLAMA = ("<|eot_id|>", None)
GEMMA = ("<eos>", "<pad>")
# Name: kind of model, TRL's file of its chat template, tokens that end and pad, settings.
MODELS = {
    "tiny-Qwen2ForCausalLM-2.5": ("qwen2", "qwen2_5", CHATML, {}),
    "tiny-Qwen3ForCausalLM": ("qwen3", "qwen3", CHATML, {"head_dim": 2}),
    "tiny-Qwen3MoeForCausalLM": ("qwen3_moe", "qwen3", CHATML, {"head_dim": 2, **EXPERTS}),
    "tiny-LlamaForCausalLM-3": ("llama", "llama3", LLAMA, {}),
    "tiny-LlamaForCausalLM-3.1": ("llama", "llama3_1", LLAMA, {}),
    "tiny-LlamaForCausalLM-3.2": ("llama", "llama3_2", LLAMA, {}),
    "tiny-MistralForCausalLM-0.1": ("mistral", "qwen2_5", ("</s>", None), {}),
    "tiny-MistralForCausalLM-0.2": ("mistral", "qwen2_5", ("</s>", None), {}),
    "tiny-GPTNeoXForCausalLM": ("gpt_neox", None, ("<|endoftext|>", None), {}),
    "tiny-GemmaForCausalLM": ("gemma", "gemma", GEMMA, {"head_dim": 2}),
    "tiny-Gemma2ForCausalLM": ("gemma2", "gemma", GEMMA, {"head_dim": 2}),
    "tiny-CohereForCausalLM": ("cohere", "cohere", GEMMA, {}),
    "tiny-Cohere2ForCausalLM": ("cohere2", "cohere2", GEMMA, {}),
    "tiny-Olmo3ForCausalLM": ("olmo3", "qwen2_5", CHATML, {}),
    "tiny-Phi3ForCausalLM": ("phi3", "phi3", ("<|end|>", "<|endoftext|>"), {}),
    "tiny-GptOssForCausalLM": (
        "gpt_oss",
        "gptoss",
        ("<|return|>", "<|endoftext|>"),
        {"head_dim": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
# Those that see: name, kind of model.
SEEING = {
    "tiny-Qwen2VLForConditionalGeneration": "qwen2_vl",
    "tiny-Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
}
EYES = {
    "qwen2_vl": {"embed_dim": 16, "hidden_size": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2},
    "qwen2_5_vl": {
        **{"hidden_size": 16, "out_hidden_size": 16, "depth": 2, "num_heads": 2},
        **{"intermediate_size": 32, "fullatt_block_indexes": [1]},
    },
}
DATA = ("zen", "zen_image", "zen_multi_image", "toolcall", "harmony")


def tokenizer(template, end, pad):
    """Bytes and the special tokens of all these models, with the chat template of one."""
    core = Tokenizer(models.BPE(bytes_and(*SPECIAL), []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = t.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=end, pad_token=pad, extra_special_tokens=list(SPECIAL)
    )
    if template:
        path = Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja"
        made.chat_template = path.read_text(encoding="utf-8")
    return made


def write_models(folder):
    """Saves the models where `from_pretrained` finds them by name, if run beside the folder."""
    t.logging.disable_progress_bar()
    for name, (kind, template, (end, pad), settings) in MODELS.items():
        words = tokenizer(template, end, pad)
        config = t.AutoConfig.for_model(
            kind,
            vocab_size=len(words),
            bos_token_id=None,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            **(SMALL | settings),
        )
        t.set_seed(0)
        for part in (words, t.AutoModelForCausalLM.from_config(config)):
            part.save_pretrained(Path(folder, OWNER, name))


def write_seeing_models(folder):
    """Saves the models that see, with their processors, in the same way."""
    for name, kind in SEEING.items():
        words = tokenizer("qwen2_5_vl", *CHATML)
        pixels = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
        processor = t.Qwen2VLProcessor if kind == "qwen2_vl" else t.Qwen2_5_VLProcessor
        config = t.AutoConfig.for_model(
            kind,
            text_config={
                **SMALL,
                "hidden_size": 16,
                "vocab_size": len(words),
                "bos_token_id": None,
                "eos_token_id": words.eos_token_id,
                "pad_token_id": words.pad_token_id,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 0]},
            },
            vision_config=EYES[kind],
            image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
            video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
            vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
            vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
        )
        t.set_seed(0)
        parts = (
            processor(
                t.Qwen2VLImageProcessor(**pixels),
                words,
                t.Qwen2VLVideoProcessor(**pixels),
                chat_template=words.chat_template,
            ),
            t.AutoModelForImageTextToText.from_config(config),
        )
        for part in parts:
            part.save_pretrained(Path(folder, OWNER, name))


def write_data(folder, scripts):
    """Lets TRL's own scripts make the data sets, and keeps what they would upload.

    Args:
        folder: Where `OWNER/NAME` is made, for `load_dataset` beside it.
        scripts: The folder `scripts` of a copy of TRL.
    """

    def keep(data, repo_id, config_name):
        path = Path(folder, repo_id, config_name)
        path.mkdir(parents=True)
        for split, part in data.items():
            part.to_parquet(path / f"{split}.parquet")

    datasets.disable_progress_bars()
    upload, datasets.DatasetDict.push_to_hub = datasets.DatasetDict.push_to_hub, keep
    try:
        for name in DATA:
            make = runpy.run_path(str(Path(scripts, f"generate_{name}_dataset.py")))["main"]
            repo = f"{OWNER}/{name.replace('_', '-')}"
            make(test_size=0.1, push_to_hub=True, repo_id=repo)
            path = Path(folder, repo)
            configs = sorted(part.name for part in path.iterdir())
            lines = "".join(f"- config_name: {one}\n  data_dir: {one}\n" for one in configs)
            (path / "README.md").write_text(f"---\nconfigs:\n{lines}---\n", encoding="utf-8")
    finally:
        datasets.DatasetDict.push_to_hub = upload

"""Tiny random models with tokenizers and processors, as a repository of the Hub has them."""

import transformers as t
from tokenizers.pre_tokenizers import ByteLevel

from official.data import RATE, SIDE, WORDS, cache_folder

LETTERS = "abcdefghijklmnopqrstuvwxyz?"
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
BOTH_SIDES = {
    "d_model": 16,
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32),
}
SQUARE = {"height": SIDE, "width": SIDE}
PICTURE = {"image_size": SIDE, "patch_size": 8}
SOUND = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (20, 9, 4),
    "conv_stride": (20, 8, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def words(*special):
    """A vocabulary of whole words and of letters."""
    return {token: number for number, token in enumerate((*special, *WORDS, *LETTERS))}


def pieces(*special):
    """The same as a unigram vocabulary, whose words begin with their space."""
    tokens = (*special, "▁", *(f"▁{word}" for word in WORDS), *LETTERS)
    return [(token, 0.0 if number < len(special) else -5.0) for number, token in enumerate(tokens)]


def bytes_and(*special):
    return {token: number for number, token in enumerate((*special, *sorted(ByteLevel.alphabet())))}


def bert():
    tokenizer = t.BertTokenizer(words("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    return t.BertForMaskedLM(t.BertConfig(vocab_size=len(tokenizer), **SMALL)), tokenizer


def gpt2():
    tokenizer = t.GPT2Tokenizer(bytes_and("<|endoftext|>"), [], pad_token="<|endoftext|>")
    config = t.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2)
    return t.GPT2LMHeadModel(config), tokenizer


def llama():
    tokenizer = gpt2()[1]
    config = t.LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, bos_token_id=0, eos_token_id=0, **SMALL
    )
    return t.LlamaForCausalLM(config), tokenizer


def xlnet():
    special = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")
    tokenizer = t.XLNetTokenizer(pieces(*special))
    config = t.XLNetConfig(
        vocab_size=len(tokenizer), d_model=16, n_layer=2, n_head=2, d_inner=32, pad_token_id=5
    )
    return t.XLNetLMHeadModel(config), tokenizer


def t5():
    tokenizer = t.T5Tokenizer(pieces("<pad>", "</s>", "<unk>"), extra_ids=4)
    config = t.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return generating(t.T5ForConditionalGeneration(config), 0), tokenizer


def bart():
    tokenizer = t.BartTokenizer(bytes_and("<s>", "<pad>", "</s>", "<unk>", "<mask>"), [])
    config = t.BartConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **BOTH_SIDES)
    return generating(t.BartForConditionalGeneration(config), 2), tokenizer


def mbart():
    tokenizer = t.MBartTokenizer(pieces("<s>", "<pad>", "</s>", "<unk>"), tgt_lang="de_DE")
    config = t.MBartConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **BOTH_SIDES)
    code = tokenizer.convert_tokens_to_ids("de_DE")
    return generating(t.MBartForConditionalGeneration(config), code), tokenizer


def nllb():
    vocabulary = {
        token: n for n, token in enumerate(("<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS))
    }
    tokenizer = t.NllbTokenizer(vocabulary, [], src_lang="eng_Latn", tgt_lang="deu_Latn")
    config = t.M2M100Config(vocab_size=len(tokenizer), max_position_embeddings=128, **BOTH_SIDES)
    return generating(t.M2M100ForConditionalGeneration(config), 2), tokenizer


def whisper():
    marks = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
    tokenizer = t.WhisperTokenizer(bytes_and(*marks), [], pad_token=marks[0])
    features = t.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    config = t.WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        max_source_positions=100,
        max_target_positions=128,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        decoder_start_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        **BOTH_SIDES,
    )
    model = generating(t.WhisperForConditionalGeneration(config), 1)
    return model, t.WhisperProcessor(features, tokenizer)


def generating(model, start):
    """Says how the decoder begins, and that it ends soon."""
    model.config.decoder_start_token_id = start
    model.generation_config = t.GenerationConfig.from_model_config(model.config)
    model.generation_config.update(max_length=12, decoder_start_token_id=start)
    return model


def wav2vec2():
    config = t.Wav2Vec2Config(vocab_size=40, classifier_proj_size=16, **SOUND, **SMALL)
    return t.Wav2Vec2Model(config), t.Wav2Vec2FeatureExtractor(sampling_rate=RATE)


def wav2vec2_adapters():
    config = t.Wav2Vec2Config(vocab_size=40, adapter_attn_dim=4, **SOUND, **SMALL)
    return t.Wav2Vec2ForCTC(config), t.Wav2Vec2FeatureExtractor(sampling_rate=RATE)


def spectrogram_transformer():
    config = t.ASTConfig(num_mel_bins=16, max_length=128, **SMALL)
    return t.ASTModel(config), t.ASTFeatureExtractor(num_mel_bins=16, max_length=128)


def vit():
    config = t.ViTConfig(encoder_stride=8, **PICTURE, **SMALL)
    return t.ViTModel(config), t.ViTImageProcessor(size=SQUARE)


def vit_mae():
    config = t.ViTMAEConfig(
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        **PICTURE,
        **SMALL,
    )
    return t.ViTMAEForPreTraining(config), t.ViTImageProcessor(size=SQUARE)


def clip():
    vocabulary = bytes_and("<|startoftext|>", "<|endoftext|>")
    vocabulary |= {f"{byte}</w>": len(vocabulary) + n for n, byte in enumerate(vocabulary)}
    tokenizer = t.CLIPTokenizer(vocabulary, [])
    config = t.CLIPConfig(
        text_config={"vocab_size": len(tokenizer), "eos_token_id": 1, **SMALL},
        vision_config={**PICTURE, **SMALL},
        projection_dim=16,
    )
    images = t.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    return t.CLIPModel(config), t.CLIPProcessor(images, tokenizer)


def segformer():
    config = t.SegformerConfig(
        hidden_sizes=[16, 16, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    return t.SegformerModel(config), t.SegformerImageProcessor(size=SQUARE)


def maskformer():
    config = t.MaskFormerConfig(
        fpn_feature_size=32,
        mask_feature_size=32,
        backbone_config=t.SwinConfig(
            image_size=SIDE,
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        decoder_config=t.DetrConfig(
            use_timm_backbone=False, backbone_config=t.ResNetConfig(), num_queries=5, **BOTH_SIDES
        ),
    )
    processor = t.MaskFormerImageProcessor(size=SQUARE, ignore_index=255)
    return t.MaskFormerForInstanceSegmentation(config), processor


def yolos():
    config = t.YolosConfig(image_size=[SIDE, SIDE], patch_size=8, num_detection_tokens=5, **SMALL)
    return t.YolosForObjectDetection(config), t.YolosImageProcessor()


MODELS = {
    "BERT": bert,
    "GPT-2": gpt2,
    "Llama": llama,
    "XLNet": xlnet,
    "T5": t5,
    "BART": bart,
    "mBART": mbart,
    "NLLB": nllb,
    "Whisper": whisper,
    "Wav2Vec2": wav2vec2,
    "Wav2Vec2 with adapters": wav2vec2_adapters,
    "AST": spectrogram_transformer,
    "ViT": vit,
    "ViT-MAE": vit_mae,
    "CLIP": clip,
    "SegFormer": segformer,
    "MaskFormer": maskformer,
    "YOLOS": yolos,
}


def write_model(home, name, repo=None):
    """Saves a model of `MODELS` with what prepares its inputs, as if it came from the Hub.

    Some scripts resume from a model's folder, so that it must have a name that is none.

    Args:
        home: The `HF_HOME` of the scripts.
        name: Key of `MODELS`.
        repo: The name to load it by; None for one of its own.

    Returns:
        The name to load it by.
    """
    repo = repo or f"tiny/{name.replace(' ', '_')}"
    path = cache_folder(home, repo, "models")
    if not any(path.iterdir()):
        t.logging.disable_progress_bar()
        t.set_seed(0)
        for part in MODELS[name]():
            part.save_pretrained(path)
    return repo

"""Which official scripts are run, with which model and which arguments of their own."""

from dataclasses import dataclass

TRAIN = (
    "--do_train --do_eval --max_steps 2 --save_steps 2 --logging_steps 1 --use_cpu "
    "--per_device_train_batch_size 4 --per_device_eval_batch_size 4 --report_to none "
    "--disable_tqdm True"
)
GENERATE = "--predict_with_generate"
SOUND = "--dataset_name audio --audio_column_name audio"
WORDS = "--text_column_name text --max_duration_in_seconds 2"
BOTH_LANGUAGES = "--train_file translation.json --validation_file translation.json"
LENGTHS = "--max_source_length 64 --max_target_length 12"

# Why a script is right to be refused: its loss is no function of one item's logits and label.
BEAMS = "of start, end and answerability along the model's own beam"
CTC = "one of whole sequences, a sum over alignments (CTC)"
BOXES = "a matching of the predicted set to the labelled one"
PIXELS = "regression of hidden pixels inside the model, from a batch without labels"
PAIRS = "a contrast between the pairs of a batch, which has no labels"


@dataclass(frozen=True)
class Case:
    """One run of a script.

    Attributes:
        script: Below the examples' folder.
        model: Key of `official.models.MODELS`.
        arguments: Its own, separated by spaces, besides `TRAIN`.
        loss: The loss it is run with.
        special_loss: What its loss is, if it is no function of one item's logits and label; else
            empty.
        repairs: Functions of `official/site/sitecustomize.py` without which it does not start.
        reports: The baseline that its evaluation must show; empty where it evaluates without loss.
    """

    script: str
    model: str
    arguments: str
    loss: str = "liberal_exp"
    special_loss: str = ""
    repairs: tuple = ()
    reports: str = "eval_cross_entropy"

    @property
    def title(self) -> str:
        """Unique among the cases of one script."""
        return self.model if self.loss == "liberal_exp" else f"{self.model} ({self.loss})"


def files(name, ending="json"):
    return f"--train_file {name}.{ending} --validation_file {name}.{ending}"


TEXT = files("text", "txt")

CASES = (
    *(
        Case(
            "audio-classification/run_audio_classification.py",
            model,
            f"{SOUND} --label_column_name label --remove_unused_columns False "
            f"--max_length_seconds 1{extra}",
        )
        for model, extra in (
            ("Wav2Vec2", ""),
            ("AST", " --freeze_feature_encoder False --attention_mask False"),
            ("Whisper", " --freeze_feature_encoder False --attention_mask False"),
        )
    ),
    Case(
        "image-classification/run_image_classification.py",
        "ViT",
        "--train_dir images --validation_dir images --remove_unused_columns False "
        "--label_column_name label",
    ),
    *(
        Case("language-modeling/run_clm.py", model, f"{TEXT} --block_size 16")
        for model in ("GPT-2", "Llama")
    ),
    Case(
        "language-modeling/run_fim.py",
        "GPT-2",
        f"{TEXT} --block_size 16",
        repairs=("embedding_arithmetic",),
    ),
    Case("language-modeling/run_mlm.py", "BERT", f"{TEXT} --max_seq_length 16"),
    Case(
        "language-modeling/run_plm.py",
        "XLNet",
        f"{TEXT} --max_seq_length 16",
        repairs=("misspelt_keyword",),
    ),
    Case("multiple-choice/run_swag.py", "BERT", f"{files('endings')} --max_seq_length 32"),
    # Its evaluation has no labels: the answers are compared as texts.
    Case(
        "question-answering/run_qa.py",
        "BERT",
        f"{files('questions')} --max_seq_length 32 --doc_stride 8",
        reports="",
    ),
    *(
        Case(
            "question-answering/run_seq2seq_qa.py",
            model,
            f"{files('questions')} --max_seq_length 64 --doc_stride 8 "
            f"--max_answer_length 12 {more}",
        )
        for model, more in (("T5", ""), ("BART", GENERATE))
    ),
    Case(
        "semantic-segmentation/run_semantic_segmentation.py",
        "SegFormer",
        "--dataset_name tiny/scenes --remove_unused_columns False",
    ),
    Case(
        "speech-recognition/run_speech_recognition_seq2seq.py",
        "Whisper",
        f"{SOUND} {WORDS} --eval_split_name test --freeze_feature_encoder False {GENERATE}",
    ),
    *(
        Case(
            "summarization/run_summarization.py",
            model,
            f"{files('summaries')} {LENGTHS} {more}",
            repairs=("offline_mode",),
        )
        for model, more in (
            ("T5", "--source_prefix summarize:"),
            ("BART", ""),
            ("mBART", "--lang en_XX"),
        )
    ),
    *(
        Case(
            "text-classification/run_classification.py",
            "BERT",
            f"{files(name)} --text_column_names sentence1 --label_column_name label {more}",
            **settings,
        )
        for name, more, settings in (
            ("classes", "--metric_name accuracy", {}),
            ("numbers", "--do_regression True", {"loss": "mse", "reports": "eval_mse"}),
        )
    ),
    Case("text-classification/run_glue.py", "BERT", files("classes")),
    Case(
        "text-classification/run_glue.py",
        "BERT",
        files("numbers"),
        loss="mse",
        reports="eval_mse",
    ),
    Case("text-classification/run_xnli.py", "BERT", "--language en --max_seq_length 32"),
    Case("token-classification/run_ner.py", "BERT", files("tokens")),
    *(
        Case(
            "translation/run_translation.py",
            model,
            f"{BOTH_LANGUAGES} {LENGTHS} --source_lang {source} --target_lang {target} {more}",
        )
        for model, source, target, more in (
            ("T5", "en", "de", f"{GENERATE} --source_prefix translate:"),
            ("BART", "en", "de", ""),
            ("mBART", "en_XX", "de_DE", GENERATE),
            ("NLLB", "en_Latn", "de_Latn", ""),
        )
    ),
    Case(
        "contrastive-image-text/run_clip.py",
        "CLIP",
        f"{files('captions')} --image_column image --caption_column caption --max_seq_length 64 "
        "--remove_unused_columns False",
        special_loss=PAIRS,
        repairs=("image_reading",),
    ),
    Case(
        "image-pretraining/run_mae.py",
        "ViT-MAE",
        "--dataset_name images --remove_unused_columns False",
        special_loss=PIXELS,
    ),
    Case(
        "image-pretraining/run_mim.py",
        "ViT",
        "--dataset_name images --mask_patch_size 16 --remove_unused_columns False",
        special_loss=PIXELS,
    ),
    Case(
        "instance-segmentation/run_instance_segmentation.py",
        "MaskFormer",
        "--dataset_name instances --image_height 32 --image_width 32 --remove_unused_columns False",
        special_loss=BOXES,
    ),
    Case(
        "object-detection/run_object_detection.py",
        "YOLOS",
        "--dataset_name objects --image_square_size 32 --remove_unused_columns False "
        "--eval_do_concat_batches False --ignore_mismatched_sizes True",
        special_loss=BOXES,
    ),
    Case(
        "question-answering/run_qa_beam_search.py",
        "XLNet",
        f"{files('questions')} --max_seq_length 32 --doc_stride 8",
        special_loss=BEAMS,
    ),
    Case(
        "speech-recognition/run_speech_recognition_ctc.py",
        "Wav2Vec2",
        f"{SOUND} {WORDS} --eval_split_name test",
        special_loss=CTC,
        repairs=("config_without_tokenizer_class",),
    ),
    Case(
        "speech-recognition/run_speech_recognition_ctc_adapter.py",
        "Wav2Vec2 with adapters",
        f"{SOUND} {WORDS} --eval_split_name test --target_language eng",
        special_loss=CTC,
        repairs=("config_without_tokenizer_class",),
    ),
)

"""Repairs of what keeps an official script or test from starting, with any loss.

Python imports this by its name before a script whose path holds the folder. The scripts stay as
they are; which repairs one gets stands in `OFFICIAL_REPAIRS`, and in the table of the results.
"""

import functools
import importlib
import os
import sys


def torchvision_operators():
    """Torchvision's build for CUDA lacks two operators at import beside a CPU build of torch."""
    import torch

    # Kept for as long as the program runs: the operators go with the object.
    global fragment
    fragment = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        fragment.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def offline_mode():
    """It imports `is_offline_mode` from transformers.utils, which has moved."""
    import huggingface_hub
    import transformers.utils

    transformers.utils.is_offline_mode = huggingface_hub.is_offline_mode


def embedding_arithmetic():
    """It takes the mean of an Embedding instead of its weight."""
    from torch.nn import Embedding

    Embedding.mean = lambda self, dim: self.weight.mean(dim)
    Embedding.size = lambda self: self.weight.size()
    Embedding.__sub__ = lambda self, other: self.weight - other


def misspelt_keyword():
    """It gives Trainer a `processing_classtokenizer`."""
    from transformers import Trainer

    start = Trainer.__init__

    @functools.wraps(start)
    def __init__(self, *args, processing_classtokenizer=None, **keywords):
        keywords.setdefault("processing_class", processing_classtokenizer)
        start(self, *args, **keywords)

    Trainer.__init__ = __init__


def config_without_tokenizer_class():
    """It reads `tokenizer_class` of a configuration, which no longer has one."""
    from transformers import PreTrainedConfig

    PreTrainedConfig.tokenizer_class = None


def image_reading():
    """It reads images by torchvision's compiled library, which does not load beside every torch."""
    import torchvision.io
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    torchvision.io.read_image = lambda path, mode: pil_to_tensor(Image.open(path).convert("RGB"))


def removed_classes():
    """It imports classes for GLUE and for lines of text, which are gone."""
    importlib.import_module("transformers.trainer")  # Another transformers takes its place by that.

    for name in ("GlueDataset", "GlueDataTrainingArguments", "LineByLineTextDataset"):
        setattr(sys.modules["transformers"], name, type(name, (), {}))


def removed_functions():
    """It imports four functions of TRL that are gone."""
    importlib.import_module("trl.import_utils").is_joblib_available = lambda: True
    module = importlib.import_module("trl.trainer.sft_trainer")
    for name in ("_chunked_cross_entropy_loss", "_patch_chunked_ce_lm_head", "dft_loss"):
        setattr(module, name, None)


for repair in os.environ.get("OFFICIAL_REPAIRS", "").split():
    globals()[repair]()

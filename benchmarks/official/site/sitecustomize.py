"""Repairs of what keeps an official script or test from starting, with any loss.

Python imports this by its name before a script whose path holds the folder. The scripts stay as
they are; which repairs one gets stands in `OFFICIAL_REPAIRS`, and in the table of the results.
"""

import functools
import os


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


for repair in os.environ.get("OFFICIAL_REPAIRS", "").split():
    globals()[repair]()

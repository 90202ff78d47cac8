"""Writes cold_start.json: which classes each model of run.sh never names, and how sure it is."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_losses import list_losses

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "recipes"))

from hf_losses.data.images.dataset import ImageArguments  # noqa: E402
from hf_losses.data.images.inputs import ModelInputs  # noqa: E402


def main(data):
    test = ImageArguments(dataset_name=data, train_val_split=0).load().splits["test"]
    labels, found = torch.from_numpy(test.labels), {}
    for loss in list_losses(task="classification"):
        folder = HERE / "runs" / loss
        inputs = ModelInputs(test, AutoImageProcessor.from_pretrained(folder))
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        parts = torch.arange(len(test)).split(500)
        with torch.no_grad():
            p = torch.cat(
                [
                    model(torch.stack([row["pixel_values"] for row in inputs.__getitems__(part)]))
                    .logits.double()
                    .softmax(-1)
                    for part in parts
                ]
            )
        missing = torch.bincount(p.argmax(-1), minlength=10).eq(0)
        true = p[torch.arange(len(test)), labels]
        found[loss] = {
            "classes_never_named": missing.nonzero().flatten().tolist(),
            "median_p_of_their_images": true[missing[labels]].median().item()
            if missing.any()
            else None,
        }
    (HERE / "cold_start.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

"""`hf-losses run`: scripts as they are, whose Trainer uses the loss, or which say why not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from transformers import Trainer, TrainingArguments

from hf_losses import get_loss, load_loss
from hf_losses.cli.main import main

TESTS = Path(__file__).parents[1]

# Runs every case in a fork of one process, which has imported and trained all there is.
DRIVER = """
import atexit, gc, json, os, sys
sys.modules["triton"] = None  # It takes the frozen objects for leaks, and says so at every exit.
import tiny
import torch
tiny.gradients("warm", tiny.bert(), tiny.texts(8))
from hf_losses.cli.main import main

torch.set_num_threads(1)
gc.freeze()  # Else each fork copies what it collects.
for folder, arguments in json.load(sys.stdin).items():
    child = os.fork()
    if not child:
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), number)
        try:
            code = main(["run", *arguments])
        except SystemExit as stop:  # As Python ends.
            code = stop.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
        atexit._run_exitfuncs()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # Freeing every object takes as long as a training.
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(os.path.join(folder, "code"), "w") as file:
        file.write(str(code))
"""

# What users write, less the data and the model; %s is how they name the trainer.
SCRIPT = """
import sys
import tiny
import torch
import transformers
from transformers import TrainingArguments
{imports}

def main():
    seen = tiny.Gradients()
    options = dict(use_cpu=True, report_to=[], disable_tqdm=True, max_steps=1, seed=3,
                   save_strategy="no", max_grad_norm=0.0, per_device_train_batch_size=8)
    args = TrainingArguments("out", **(options | dict({options})))
    trainer = {trainer}(
        model={model}, args=args, train_dataset=tiny.texts(8, {labels}), callbacks=[seen], {more}
    )
    {train}
    torch.save(seen.steps[-1], "gradient.pt")
    print(type(trainer).__name__, trainer.loss_config if hasattr(trainer, "loss_config") else None)

if __name__ == "__main__":
    {main}
"""


def script(
    imports="from transformers import Trainer",
    trainer="Trainer",
    options="",
    model="tiny.bert()",
    labels="None",
    more="",
    train="trainer.train()",
    main="main()",
):
    return SCRIPT.format(**locals())


SUBCLASS = """
from transformers import Trainer
class MyTrainer(Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.logged = 0
    def log(self, *args, **kwargs):
        self.logged += 1
        super(MyTrainer, self).log(*args, **kwargs)
"""
SEQ2SEQ = """
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments as TrainingArguments
"""
STEP = """
from transformers import Trainer
class MyTrainer(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = model(**self._prepare_inputs(inputs)).loss
        loss.backward()
        return loss.detach()
"""
OWN = """
from transformers import Trainer
class Weighted(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss
class MyTrainer(Weighted):
    pass
"""
FALLS_BACK = """
    try:
        trainer.train(resume_from_checkpoint={})
    except ValueError:
        trainer.train()
"""
PATCHED = """
from transformers import Trainer
stock = Trainer.compute_loss
Trainer.compute_loss = lambda self, *args, **kwargs: stock(self, *args, **kwargs)
"""
# Classes that keep their compute_loss, whose super() is the loss.
LOGS = """
from transformers import Trainer, Seq2SeqTrainer
{decorator}
class MyTrainer({base}):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        print("batch loss", round(loss.item(), 4), tuple(outputs.logits.shape))
        return (loss, outputs) if return_outputs else loss
    {more}
"""
UNMARKED = """
def timed(function):
    return lambda *args, **kwargs: function(*args, **kwargs)
"""
HELPER = """
from transformers import Trainer
class MyTrainer(Trainer):
    def compute_loss(self, model, inputs, **kwargs):
        print("batch loss")
        return self.plain(model, inputs, **kwargs)
    def plain(self, model, inputs, **kwargs):
        return super().compute_loss(model, inputs, **kwargs)
"""
COUNTS = """
from transformers import Trainer
class MyTrainer(Trainer):
    steps = 4
    def compute_loss(self, *args, **kwargs):
        self.steps += 1
        loss = super().compute_loss(*args, **kwargs)
        assert self.steps == 5
        return loss
"""
DROPS = """
from transformers import Trainer
class MyTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        _, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss
"""
PENALTY = """
from transformers import Trainer
class MyTrainer(Trainer):
    loss_is_scaled_for_ga = {flag}
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + next(model.parameters()).square().sum()
        return (loss, outputs) if return_outputs else loss
"""
# Each row twice in a batch, as for R-Drop.
TWICE = """
import torch
from transformers import Trainer
class MyTrainer(Trainer):
    loss_is_scaled_for_ga = False
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        twice = {key: torch.cat([value, value]) for key, value in inputs.items()}
        loss, outputs = super().compute_loss(model, twice, return_outputs=True, **kwargs)
        loss = loss + next(model.parameters()).square().sum()
        return (loss, outputs) if return_outputs else loss
"""
# Two passes, of which the evaluation counts the second by a half.
TWO_VIEWS = """
from transformers import Trainer
class MyTrainer(Trainer):
    loss_is_scaled_for_ga = False
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        backwards = {**inputs, "input_ids": inputs["input_ids"].flip(1)}
        loss = loss + super().compute_loss(model, backwards, **kwargs) / 2
        return (loss, outputs) if return_outputs else loss
"""
# A replay of the batch, of which the stock Trainer does not know the count.
REPLAYS = """
from transformers import Trainer
class MyTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        calls = [num_items_in_batch, None]
        results = [super(MyTrainer, self).compute_loss(model, inputs, True, count)
                   for count in calls{order}]
        loss = sum(loss for loss, _ in results)
        return (loss, results[0][1]) if return_outputs else loss
"""
# Its step goes past its own compute_loss.
PAST = """
from transformers import Trainer
class MyTrainer(Trainer):
    def compute_loss(self, *args, **kwargs):
        return 0 * super().compute_loss(*args, **kwargs)
    def training_step(self, model, inputs, num_items_in_batch=None):
        batch = self._prepare_inputs(inputs)
        loss = super().compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()
"""
# A second pass, of which only the logits are used.
LOGITS = """
from transformers import Trainer
class MyTrainer(Trainer):
    def compute_loss(self, model, inputs, **kwargs):
        assert model(**inputs).logits.requires_grad
        return super().compute_loss(model, inputs, **kwargs)
"""
# Adversarial training and R-Drop, which take the second loss from the model.
ADVERSARIAL = """
from transformers import Trainer
class MyTrainer(Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        next(model.parameters()).data.add_(0.1)
        model(**self._prepare_inputs(inputs)).loss.backward()
        return loss
"""
SECOND_PASS = """
from transformers import Trainer
class MyTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + model(**inputs)[0]
        return (loss, outputs) if return_outputs else loss
"""
OVERRIDES = """
from transformers import Trainer
class MyTrainer(Trainer):
    def train(self):
        return super().train()
    def evaluation_loop(self, dataloader, description, prediction_loss_only=False, **kwargs):
        return super().evaluation_loop(dataloader, description, prediction_loss_only, **kwargs)
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        labels = inputs.pop("labels")
        with torch.no_grad():
            logits = model(**inputs).logits
        return torch.nn.functional.cross_entropy(logits, labels), logits, labels
"""
DIVIDES = """
from transformers import Trainer
class MyTrainer(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        if self.args.gradient_accumulation_steps > 1:
            loss = loss / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()
"""
COPIED_STEP = """
import types
from transformers import Trainer
stock = Trainer.training_step
class MyTrainer(Trainer):
    training_step = types.FunctionType(stock.__code__, stock.__globals__, "training_step",
                                       stock.__defaults__, stock.__closure__)
"""
CRITERION = """
from transformers import Trainer
class MyTrainer(Trainer):
    criterion = "of the script"
"""
OWN_NAMES = """
from transformers import BatchEncoding, Trainer, default_data_collator
class MyTrainer(Trainer):
    loss_config = None
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_config = self.swap = self.overriding = "of the script"
    def save_model(self, output_dir=None):
        super().save_model(output_dir)
    def compute_loss(self, model, inputs, *args, **kwargs):
        assert inputs.labels is not None
        return super().compute_loss(model, inputs, *args, **kwargs)
"""
USES_OWN_NAMES = """
    trainer.train()
    trainer.evaluate(trainer.train_dataset)
    trainer.save_model('saved')
    assert trainer.loss_config == trainer.swap == trainer.overriding == "of the script"
"""
OWN_FORWARD = """
from transformers import BertForSequenceClassification, Trainer
class Weighted(BertForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = super().forward(input_ids, attention_mask)
        if labels is not None:
            weight = torch.arange(1.0, tiny.CLASSES + 1)
            outputs["loss"] = torch.nn.functional.cross_entropy(outputs.logits, labels, weight)
        return outputs
"""
ONLY_TRAINING = """
from transformers import BertForSequenceClassification, Trainer
class Regularised(BertForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = super().forward(input_ids, attention_mask, labels=labels)
        if labels is not None and self.training:
            outputs["loss"] = outputs["loss"] + (outputs.logits - 1).square().mean()
        return outputs
"""
PATCHED_FORWARD = """
import types
from transformers import BertForSequenceClassification, Trainer
stock = BertForSequenceClassification.forward
def forward(self, input_ids, attention_mask=None, labels=None):
    outputs = stock(self, input_ids, attention_mask, labels=labels)
    if labels is not None:
        outputs.loss = outputs.loss + (outputs.logits - 1).square().mean()
    return outputs
"""
LATE_FUNCTION = """
    trainer.compute_loss_func = lambda outputs, labels, **_: outputs.logits.sum()
    trainer.train()
"""
YES_NO = """
from transformers import Trainer
class YesNo(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bert = tiny.bert()
    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.bert(input_ids, attention_mask).logits
        binary = torch.nn.functional.binary_cross_entropy_with_logits
        return {"logits": logits} | ({} if labels is None else {"loss": binary(logits, labels)})
"""
CROSS_ENCODER = """
from sentence_transformers.cross_encoder import CrossEncoderTrainer
"""
REWARD = "from trl import RewardTrainer"
MASKED_IMAGES = """
from transformers import Trainer, ViTConfig, ViTForMaskedImageModeling as Model
sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
             image_size=8, patch_size=4)
"""
MASKED_AUTOENCODER = MASKED_IMAGES.replace(
    "ViTConfig, ViTForMaskedImageModeling", "ViTMAEConfig as ViTConfig, ViTMAEForPreTraining"
)
CLIP = """
from transformers import Trainer, CLIPConfig, CLIPModel
tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
"""
OWN_MODEL = """
from transformers import Trainer
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 3)
    def forward(self, input_ids):
        return {"loss": self.head(input_ids.float()).square().mean()}
"""
POWER = ["--loss", "strict_m_power", "--loss_kwargs", '{"alpha": 0.3}']
NAMED = {"name": "strict_m_power", "alpha": 0.3}
PARTS = {"loss": "strict_m_power", "alpha": 0.3}

# By name: the script, and the loss that it must have been trained with.
USED = {
    "imported": (script(), PARTS),
    "attribute": (script("", "transformers.Trainer"), PARTS),
    "module": (script("from transformers.trainer import Trainer"), PARTS),
    "subclass": (script(SUBCLASS, "MyTrainer"), PARTS),
    "library": (script(SEQ2SEQ, "Seq2SeqTrainer"), PARTS),
    "smoothing": (script(options="label_smoothing_factor=0.1"), PARTS | {"label_smoothing": 0.1}),
    "model_init": (script(model="None", more="model_init=lambda: tiny.bert()"), PARTS),
    "exit": (script(main="sys.exit(main())"), PARTS),
    "falls_back": (script(train=FALLS_BACK.format("True")), PARTS),
    "falls_back_from": (script(train=FALLS_BACK.format("'out/checkpoint-9'")), PARTS),
    "same": (
        script("from hf_losses import LossTrainer", "LossTrainer", more="loss='strict_m_power'"),
        PARTS,
    ),
    "logs": (script(LOGS.format(base="Trainer", decorator="", more=""), "MyTrainer"), PARTS),
    "logs_library": (
        script(SEQ2SEQ + LOGS.format(base="Seq2SeqTrainer", decorator="", more=""), "MyTrainer"),
        PARTS,
    ),
    "logs_ours": (
        script(
            "from hf_losses import LossTrainer\n"
            + LOGS.format(base="LossTrainer", decorator="", more=""),
            "MyTrainer",
        ),
        PARTS,
    ),
    "logs_decorated": (
        script(
            LOGS.format(
                base="Trainer", decorator=UNMARKED, more="compute_loss = timed(compute_loss)"
            ),
            "MyTrainer",
        ),
        PARTS,
    ),
    "logs_helper": (script(HELPER, "MyTrainer"), PARTS),
    "signature": (
        script(
            "import inspect\nfrom transformers import Trainer",
            train="assert 'processing_class' in inspect.signature(Trainer).parameters\n"
            "    trainer.train()",
        ),
        PARTS,
    ),
    "criterion": (
        script(
            CRITERION,
            "MyTrainer",
            train="assert trainer.criterion == 'of the script'; trainer.criterion = 0\n"
            "    trainer.train()",
        ),
        PARTS,
    ),
    "own_names": (
        script(
            OWN_NAMES,
            "MyTrainer",
            train=USES_OWN_NAMES,
            more="data_collator=lambda rows: BatchEncoding(default_data_collator(rows))",
        ),
        PARTS,
    ),
    "copied_step": (
        script(
            COPIED_STEP, "MyTrainer", "per_device_train_batch_size=4, gradient_accumulation_steps=2"
        ),
        PARTS,
    ),
    "divides": (script(DIVIDES, "MyTrainer"), PARTS),  # By one step.
    "again": (
        script(
            train="trainer = type(trainer)(model=tiny.bert(), args=args, "
            "train_dataset=tiny.texts(8), callbacks=[seen]); trainer.train()"
        ),
        PARTS,
    ),
    "counts": (script(COUNTS, "MyTrainer"), PARTS),
    "past": (script(PAST, "MyTrainer"), PARTS),
    "logits": (script(LOGITS, "MyTrainer"), PARTS),
    "overrides": (
        script(
            OVERRIDES,
            "MyTrainer",
            train="trainer.train(); trainer.evaluate(trainer.train_dataset)",
        ),
        PARTS,
    ),
    "save_pretrained": (
        script(train="trainer.train(); trainer.model.save_pretrained('model')"),
        PARTS,
    ),
}
WORDS = script(
    model="tiny.causal_lm()",
    labels="tiny.some_next_tokens",
    train="[trainer.train(), *(trainer.evaluate(trainer.train_dataset) for _ in range(2))]",
)
WARMUP = script(options="max_steps=2, learning_rate=0.0")
MORE_LABELS = """
from transformers import Trainer
class MyTrainer(Trainer):
    def get_train_dataloader(self):
        return [row | {"label_ids2": row["labels"]} for row in super().get_train_dataloader()]
"""
# By name: the script, and what the error must say.
REFUSED = {
    "more_labels": (script(MORE_LABELS, "MyTrainer"), r"the batch has also label_ids2"),
    "own": (script(OWN, "MyTrainer"), r"Weighted\.compute_loss \(.*script\.py:\d+\) computes an"),
    "func": (script(more="compute_loss_func=main"), r"a compute_loss_func \(.*script\.py:\d+\);"),
    "patched": (script(PATCHED), r"Trainer\.compute_loss \(.*script\.py:\d+\) computes another"),
    "divides_twice": (
        script(DIVIDES, "MyTrainer", "gradient_accumulation_steps=2"),
        r"MyTrainer\.training_step \(.*script\.py:\d+\) divides the loss by the accumulation",
    ),
    "step": (script(STEP, "MyTrainer"), r"MyTrainer\.training_step \(.*script\.py:\d+\) does not"),
    "regression": (
        script(model="tiny.bert(num_labels=1)", labels="tiny.number"),
        "is for classification and does not fit the model's head.*choose one of: mse, ",
    ),
    "untrained": (script(train="seen.steps.append(0)"), "without training a transformers Trainer"),
    "exits": (script(train="sys.exit()"), "without training a transformers Trainer"),
    "other": (
        script("from hf_losses import LossTrainer", "LossTrainer", more="loss='strict_l'"),
        "the script gives its LossTrainer the loss 'strict_l'; keep one",
    ),
    "caught": (
        script(OWN, "MyTrainer", main="try:\n        main()\n    except Exception: pass"),
        "computes another",
    ),
    "replaced": (
        script(
            train="trainer.compute_loss = lambda model, batch, *_, **__: model(**batch).loss; "
            "trainer.train()"
        ),
        "does not take it from compute_loss",
    ),
    "weighted": (
        script(OWN, "MyTrainer"),
        r"take it out of the script, or let it call super\(\)\.compute_loss and return that loss; "
        r"class weights go into --loss_kwargs '\{\"weight\": \[1\.0, 2\.5\]\}'",
    ),
    "drops": (
        script(DROPS, "MyTrainer"),
        r"MyTrainer\.compute_loss \(.*script\.py:\d+\) computes an",
    ),
    "cross_encoder": (
        script(CROSS_ENCODER, "CrossEncoderTrainer"),
        r"CrossEncoderTrainer\.compute_loss .* hf_losses\.CrossEncoderLoss\(model, "
        "'strict_m_power'\\)",
    ),
    "reward": (
        script(REWARD, "RewardTrainer"),
        r"RewardTrainer\.compute_loss .* it belongs to trl, .* this command cannot replace it$",
    ),
    "mim": (
        script(MASKED_IMAGES, model="Model(ViTConfig(**sizes))"),
        "ViTForMaskedImageModeling takes no labels",
    ),
    "mae": (
        script(MASKED_AUTOENCODER, model="Model(ViTConfig(**sizes))"),
        "ViTMAEForPreTraining takes no labels",
    ),
    "clip": (
        script(CLIP, model="CLIPModel(CLIPConfig(text_config=tower, vision_config=tower))"),
        "CLIPModel takes no labels",
    ),
    "unlabelled": (
        script(
            OWN_MODEL,
            model="Model()",
            more="data_collator=lambda rows: {'input_ids': torch.ones(8, 8)}",
        ),
        "the batch has no 'labels' for the loss, only: input_ids",
    ),
    "own_forward": (
        script(OWN_FORWARD, model="tiny.bert(Weighted)"),
        r"Weighted\.forward computes another loss than cross_entropy .* no part in this training "
        r"\(hf_losses.LossTrainer leaves it out, and warns\); "
        r"class weights go into --loss_kwargs",
    ),
    "only_training": (
        script(ONLY_TRAINING, model="tiny.bert(Regularised)"),
        r"Regularised\.forward computes another loss .* though not in an evaluation: what it",
    ),
    "patched_class": (
        script(PATCHED_FORWARD + "BertForSequenceClassification.forward = forward"),
        r"BertForSequenceClassification\.forward computes another loss than cross_entropy",
    ),
    "patched_model": (
        script(
            PATCHED_FORWARD,
            train="trainer.model.forward = types.MethodType(forward, trainer.model)\n"
            "    trainer.train()",
        ),
        r"BertForSequenceClassification\.forward computes another loss than cross_entropy",
    ),
    "registered_loss": (
        script(
            "from transformers import Trainer\n"
            "from transformers.loss.loss_utils import LOSS_MAPPING\n"
            "LOSS_MAPPING['ForCausalLM'] = lambda logits, labels, **_: logits.square().mean()",
            model="tiny.causal_lm()",
            labels="tiny.some_next_tokens",
        ),
        r"LlamaForCausalLM\.forward computes another loss than cross_entropy",
    ),
    "late_function": (
        script(train=LATE_FUNCTION.strip()),
        "gives its Trainer a compute_loss_func",
    ),
    "yes_no": (
        script(YES_NO, model="YesNo()", labels="tiny.yes_or_no_per_class"),
        r"but of yes/no labels: set --loss_kwargs '{\"problem_type\": "
        r"\"multi_label_classification\"}'",
    ),
    "adversarial": (
        script(ADVERSARIAL, "MyTrainer"),
        "MyTrainer trains on the model's own loss as well",
    ),
    "second_pass": (
        script(SECOND_PASS, "MyTrainer"),
        "MyTrainer trains on the model's own loss as well",
    ),
    "loss_function": (
        script(train="trainer.model.loss_function = print; Trainer(trainer.model, args)"),
        "BertForSequenceClassification was given a loss_function of its own",
    ),
    "stock_checkpoint": (
        script(train="trainer.train('../stock/checkpoint-1')"),
        r"was trained with the loss {'name': 'cross_entropy'}, .* --allow_loss_change "
        r"\(.*; to hf-losses run before SCRIPT\)$",
    ),
}
# As before there was a count of the step's items.
WITHOUT_COUNT = PENALTY.format(flag=None).replace(
    ", **kwargs)\n        loss =", ")\n        loss ="
)
# By name: a class that adds to the loss, the model, the labels, and the stock Trainer's gradient as
# a multiple of the mean's: where it does not know the count, it adds up the means of both batches.
ADDS = {
    "adds_to_classifier": (PENALTY.format(flag=False), "tiny.bert()", "None", 1),
    "adds_to_language_model": (
        PENALTY.format(flag=None),
        "tiny.causal_lm()",
        "tiny.some_next_tokens",
        1,
    ),
    "adds_without_count": (
        WITHOUT_COUNT,
        "tiny.causal_lm()",
        "tiny.some_next_tokens",
        2,
    ),
    "twice": (TWICE, "tiny.bert()", "None", 1),
    "two_views": (TWO_VIEWS, "tiny.bert()", "None", 1),
    "replays_last": (REPLAYS.format(order=""), "tiny.causal_lm()", "tiny.some_next_tokens", 1),
    "replays_first": (
        REPLAYS.format(order="[::-1]"),
        "tiny.causal_lm()",
        "tiny.some_next_tokens",
        1,
    ),
    "adds_to_tokens": (
        PENALTY.format(flag=None),
        "tiny.bert(transformers.BertForTokenClassification)",
        "tiny.class_of_each_token",
        2,
    ),
}
RESUMED = script(options="max_steps=2", train="trainer.train('../stock/checkpoint-1')")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Folders by case, with the script, its stdout, stderr and exit code, and what it left."""
    folders, arguments = {}, {}
    for name, (text, _) in (USED | REFUSED).items():
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "script.py").write_text(text)
        arguments[str(folders[name])] = [*POWER, "script.py"]
    for name, text, option in (
        ("warmup", WARMUP, ["--loss_warmup_steps", "2"]),
        ("long_warmup", WARMUP, ["--loss_warmup_steps", "3"]),
        ("resumed", RESUMED, ["--allow_loss_change"]),
        ("words", WORDS, []),
    ):
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "script.py").write_text(text)
        arguments[str(folders[name])] = [*POWER, *option, "script.py"]
    for name, (source, model, labels, _) in ADDS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        settings = "per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=0.0"
        evaluate = f"print(trainer.evaluate(tiny.texts(8, {labels}))['eval_loss'])"
        train = f"trainer.train()\n    {evaluate}"
        text = script(source, "MyTrainer", settings, model, labels, train=train)
        (folders[name] / "script.py").write_text(text)
        arguments[str(folders[name])] = ["--loss", "cross_entropy", "script.py"]
    args = tiny.arguments(
        tmp_path_factory.getbasetemp() / "stock",
        TrainingArguments,
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
        learning_rate=0.0,
        max_grad_norm=0.0,
    )
    Trainer(tiny.bert(), args, train_dataset=tiny.texts(8)).train()
    folders["balanced"] = tmp_path_factory.mktemp("balanced")
    again = "trainer.train(); Trainer(trainer.model, args).predict(tiny.texts(8))"
    (folders["balanced"] / "script.py").write_text(script(train=again))
    options = '{"gamma": 1, "weight": "balanced"}'
    balanced = ["--loss", "focal", "--loss_kwargs", options, "script.py"]
    arguments[str(folders["balanced"])] = balanced
    run(["-c", DRIVER], input=json.dumps(arguments), check=True)
    return folders


def run(command, **keywords):
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    return subprocess.run(
        [sys.executable, *command], text=True, capture_output=True, env=environment, **keywords
    )


def wanted_gradient(loss=None, **params):
    """Of one batch, by autograd alone; without a loss the model's own."""
    model = tiny.bert()
    rows = tiny.texts(8)
    batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
    outputs = model(**batch)
    value = get_loss(loss, **params)(outputs.logits, batch["labels"]) if loss else outputs.loss
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", USED)
def test_the_gradient_is_that_of_the_loss(cases, name):
    folder, parts = cases[name], USED[name][1]
    errors = (folder / "stderr").read_text()
    assert (folder / "code").read_text() == "0", errors
    assert errors.startswith(
        "hf-losses run: strict_m_power (strict): p**(-alpha) - 1, alpha=0.3, in script.py\n"
    )
    gradient = torch.load(folder / "gradient.pt")
    expected = wanted_gradient(**parts)
    assert (gradient - expected).norm() < 2e-6 * expected.norm()
    assert (gradient - wanted_gradient()).norm() > 0.1 * expected.norm()


def test_a_warmup_goes_over_from_cross_entropy(cases):
    gradient = torch.load(cases["warmup"] / "gradient.pt")
    expected = (wanted_gradient("cross_entropy") + wanted_gradient(**PARTS)) / 2
    assert (gradient - expected).norm() < 2e-6 * expected.norm()
    arguments = json.loads((cases["warmup"] / "out" / "training_args.json").read_text())
    assert arguments["loss_warmup_steps"] == 2
    assert arguments["loss_kwargs"] == {"alpha": 0.3}


def test_what_a_script_takes_for_a_perplexity_is_told_once(cases):
    shown = (cases["words"] / "stderr").read_text()
    assert shown.count("its exponential is no perplexity") == 1
    assert "that of cross_entropy is" in shown
    assert "perplexity" not in (cases["warmup"] / "stderr").read_text()


def test_a_warmup_that_the_training_would_end_in_is_refused(cases):
    folder = cases["long_warmup"]
    assert (folder / "code").read_text() == "1"
    shown = (folder / "stderr").read_text().splitlines()[-1]
    assert "is not in use: loss_warmup_steps=3 is more than the 2 steps" in shown


def test_class_weights_are_balanced_by_the_scripts_data(cases):
    labels = [row["labels"] for row in tiny.texts(8)]
    weight = [8 / (3 * labels.count(k)) for k in range(3)]
    gradient = torch.load(cases["balanced"] / "gradient.pt")
    expected = wanted_gradient("focal", gamma=1, weight=weight, reduction="sum") / 8
    assert (gradient - expected).norm() < 2e-6 * expected.norm()


@pytest.mark.parametrize("name", REFUSED)
def test_a_script_that_would_not_use_it_ends_with_the_reason(cases, name):
    folder, (_, reason) = cases[name], REFUSED[name]
    errors = (folder / "stderr").read_text()
    assert (folder / "code").read_text() == "1"
    last = errors.splitlines()[-1]
    assert last.startswith("hf-losses run: error: the loss 'strict_m_power' ")
    assert re.search(reason, last)
    assert "Traceback" not in errors
    assert not (folder / "gradient.pt").exists() or name == "untrained"


@pytest.mark.parametrize("name", [name for name in USED if name.startswith("logs")])
def test_a_compute_loss_that_calls_super_stays_in_force(cases, name):
    lines = (cases[name] / "stdout").read_text().splitlines()
    assert [line.startswith("batch loss") for line in lines].count(True) == 1
    if name != "logs_helper":
        rows = tiny.texts(8)
        batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
        loss = get_loss("strict_m_power", alpha=0.3)(tiny.bert()(**batch).logits, batch["labels"])
        assert lines[0] == f"batch loss {loss.item():.4f} (8, 3)"


@pytest.mark.parametrize("name", ADDS)
def test_what_a_script_adds_to_the_loss_weighs_as_in_the_stock_trainer(cases, name, tmp_path):
    source, model, labels, times = ADDS[name]
    defined = {}
    exec(source, defined)
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    known = {"tiny": tiny, "transformers": transformers}
    model, labels = (eval(text, known) for text in (model, labels))
    data = tiny.texts(8, labels)
    (stock,) = tiny.gradients(tmp_path, model, data, trainer=defined["MyTrainer"], **settings)
    gradient = torch.load(cases[name] / "gradient.pt")
    # A mean of means is not quite the mean over the labels, of which batches have more or less.
    tolerance = 1e-5 if times == 1 else 0.02
    assert (gradient - stock / times).norm() < tolerance * stock.norm() / times
    # The evaluation has the term, too.
    args = tiny.arguments(tmp_path, TrainingArguments)
    expected = defined["MyTrainer"](model, args, eval_dataset=data).evaluate()["eval_loss"]
    evaluated = float((cases[name] / "stdout").read_text().splitlines()[-2])
    assert evaluated == pytest.approx(expected, rel=1e-4)


def test_a_model_saved_by_save_pretrained_alone_names_its_loss(cases):
    folder = cases["save_pretrained"]
    assert json.loads((folder / "model" / "config.json").read_text())["hf_losses"] == NAMED
    assert json.loads((folder / "out" / "hf_losses.json").read_text()) == NAMED
    for saved in ("model", "out"):
        loss = load_loss(folder / saved)
        assert (loss.spec.name, loss.params) == ("strict_m_power", {"alpha": 0.3})


def test_a_stock_checkpoint_is_resumed_where_that_is_allowed(cases):
    folder = cases["resumed"]
    assert (folder / "code").read_text() == "0", (folder / "stderr").read_text()
    gradient, expected = torch.load(folder / "gradient.pt"), wanted_gradient(**PARTS)
    assert (gradient - expected).norm() < 2e-6 * expected.norm()


def test_the_class_keeps_its_name(cases):
    assert (cases["subclass"] / "stdout").read_text().splitlines()[-1] == f"MyTrainer {NAMED}"


# ---- As without us -------------------------------------------------------------------------------

SHOW = """
import atexit, os, sys
value = 3
print(sys.argv, __name__, os.path.basename(__file__), os.getcwd(), sys.path[0], __doc__)
print([name for name in globals() if "__" not in name], __spec__ and __spec__.name, __package__)
print(sys.modules["__main__"].value, sys.modules["__main__"].__dict__ is globals())
atexit.register(lambda: print("at the end", value))
import beside
"""
ENDS = {
    "exit": "sys.exit(3)",
    "message": "sys.exit('a message')",
    "error": "def f():\n    {}['key']\ntry:\n    f()\nexcept KeyError as error:\n"
    "    raise ValueError('chained') from error",
    "interrupt": "import signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)",
    "abort": "os._exit(7)",
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "beside.py").write_text("print('imported from beside the script')\n")
    return folder


def both(command, **keywords):
    """What Python makes of a command, and what `hf-losses run` does."""
    ours = run(["-m", "hf_losses", "run", "--loss", "strict_l", *command], **keywords)
    first, _, ours.stderr = ours.stderr.partition("\n")
    assert first.startswith("hf-losses run: strict_l (strict): 1/sqrt(p*(2 - p)) - 1, in ")
    return run(command, **keywords), ours


@pytest.mark.parametrize("end", ENDS)
def test_a_script_sees_and_ends_as_without_us(folder, end):
    (folder / "show.py").write_text(SHOW + ENDS[end] + "\n")
    command = [f"scripts{os.sep}show.py", "--loss", "x", "-m", "--", "rest"]
    plain, ours = both(command, cwd=folder.parent)
    assert plain.returncode not in (0, 1) or end in ("error", "message")
    assert (ours.returncode, ours.stdout, ours.stderr) == (
        plain.returncode,
        plain.stdout,
        plain.stderr,
    )


def test_a_module_sees_and_ends_as_without_us(folder):
    (folder / "show.py").write_text(SHOW.replace("import beside", "") + ENDS["error"] + "\n")
    plain, ours = both(["-m", "scripts.show", "--loss", "x"], cwd=folder.parent)
    assert ours.stdout == plain.stdout
    assert ours.returncode == plain.returncode == 1
    frozen = re.compile(r'  File "<frozen runpy>".*\n')
    assert ours.stderr == frozen.sub("", plain.stderr)


def test_what_python_cannot_read_is_shown_as_without_us(folder):
    (folder / "wrong.py").write_text("x = = 3\n")
    plain, ours = both(["wrong.py"], cwd=folder)
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr)


def test_processes_that_the_script_spawns_find_its_functions(folder):
    program = """
import multiprocessing, subprocess, sys
def square(x):
    return x * x
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(square, [2, 3]))
    import lightning
    for _ in range(2):
        subprocess.run([sys.executable, "train.py"])
    sys.exit(4)
"""
    (folder / "pool.py").write_text(program)
    (folder / "train.py").write_text("")
    (folder / "lightning.py").write_text("")
    plain, ours = both(["pool.py"], cwd=folder)
    assert ours.stdout == plain.stdout == "[4, 9]\n"
    assert ours.returncode == plain.returncode == 4
    # It may train, with a loss of its own.
    assert ours.stderr.count("hf-losses run: lightning is imported, whose Trainer is another") == 1
    assert ours.stderr.count("hf-losses run: train.py is started as a process of its own") == 1


@pytest.mark.slow
def test_a_script_may_set_what_transformers_reads_when_it_is_imported(folder):
    program = """
import os
os.environ["HF_HOME"] = "elsewhere"
import transformers, huggingface_hub.constants
transformers.Trainer
print(huggingface_hub.constants.HF_HOME)
raise SystemExit(3)
"""
    (folder / "home.py").write_text(program)
    ours = run(["-m", "hf_losses", "run", "--loss", "strict_l", "home.py"], cwd=folder)
    assert (ours.returncode, ours.stdout) == (3, "elsewhere\n")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--loss", "strict_q", "x.py"], "unknown loss 'strict_q'. Did you mean 'strict_m'?"),
        (["x.py"], "required: --loss"),
        (["--loss", "strict_l"], "required: SCRIPT"),
        (["--loss", "strict_l", "no.py"], "no script 'no.py'; for a module write -m no.py"),
        (["--loss", "strict_l", "-m", "no.such"], "no module named 'no.such'"),
        (["--loss", "strict_l", "-m", "needy.x"], "cannot be imported: No module named 'lacking'"),
        (["--loss", "strict_l", "-m", ".x"], "module '.x' cannot be imported"),
        (
            ["--loss", "strict_l", "loop.py"],
            "loop.py has no transformers Trainer, nor have the modules beside it, and trains in a "
            "loop of its own; use hf_losses.get_loss('strict_l') in that loop",
        ),
        (["--loss", "strict_l", "-m", "loop"], "loop has no transformers Trainer"),
        (["--loss", "strict_l", "-m", "loops"], "loops has no transformers Trainer"),
        ([*POWER[:3], "[1]", "x.py"], "loss_kwargs must be a JSON object"),
        ([*POWER[:3], '{"alpha": -1}', "x.py"], "alpha must be finite and above 0"),
    ],
)
def test_bad_input_is_refused_before_the_script_starts(
    folder, monkeypatch, capsys, command, message
):
    (folder / "x.py").write_text("print('started')")
    (folder / "loops").mkdir()
    (folder / "needy").mkdir()
    (folder / "needy/__init__.py").write_text("import lacking")
    for name in ("loop.py", "loops/__main__.py", "loops/__init__.py"):
        (folder / name).write_text("import torch, beside" if "_" not in name else "import torch")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main(["run", *command])
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not shown.out


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path):
    (tmp_path / "script.py").write_text(script(options="per_device_train_batch_size=4"))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    command = [*launch, "--rdzv-endpoint=localhost:0", "-m", "hf_losses", "run", *POWER]
    done = run([*command, "script.py"], cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("hf-losses run: strict_m_power") == 1
    gradient, expected = torch.load(tmp_path / "gradient.pt"), wanted_gradient(**PARTS)
    assert (gradient - expected).norm() < 2e-6 * expected.norm()

"""Every head of the installed transformers has a plain loss, or a place in the tables of builtin.

Its source is read for it: what `forward` makes of labels must be one of a few known shapes.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from transformers import models
from transformers.loss.loss_utils import LOSS_MAPPING

from hf_losses.models import builtin
from hf_losses.models.heads import CLASSIFIERS, LABELLERS, QUESTION_ANSWERING

TABLES = (
    builtin.OTHER_LOSS,
    builtin.SETTINGS,
    builtin.MASKED,
    builtin.CLASSES_ALONE,
    builtin.PROBABILITIES,
)
# Their source looks strange, and is nevertheless plain.
PLAIN_IN_FACT = {
    # Refused for their second column of labels, and plain without it.
    "GraniteDoclingForConditionalGeneration",
    "LukeForMaskedLM",
    # The experts are asked for by an argument of forward, never by the config.
    "SwitchTransformersForConditionalGeneration",
    # Without an auxiliary head and with several classes, on which check_head insists.
    "DPTForSemanticSegmentation",
    "Data2VecVisionForSemanticSegmentation",
    "SegformerForSemanticSegmentation",
    "UperNetForSemanticSegmentation",
    # Keeps the labels that are not -100.
    "UltrabertForMaskedLM",
}
CALL = r"(\.\w+\([^()]*(\([^()]*\))?[^()]*\))*"  # .view(-1, logits.size(-1)).float()
PLAIN = re.compile(
    r"None|outputs\.loss"
    r"|self\.loss_function\(.*\)"
    r"|(nn\.)?(CrossEntropyLoss|MSELoss|BCEWithLogitsLoss)\((ignore_index=-100)?\)"
    r"|CrossEntropyLoss\(ignore_index=self\.config\.semantic_loss_ignore_index\)"
    r"|(loss_fct|loss_fn|loss_func|criterion|self\.mlm_loss_fct)"
    rf"\(\w*(logits|scores?)\w*{CALL}, labels{CALL}\)"
    rf"|nn\.functional\.cross_entropy\(logits{CALL}, labels{CALL}\)"
    r"|loss_fct\(shift_logits\.view\(-1, shift_logits\.size\(-1\)\), shift_labels\.view\(-1\)\)"
    r"|load_balancing_loss_func\(.*\)"
    r"|self\.(config\.text_config\.)?(router_)?aux_loss_coef \* aux_loss.*"
    r"|masked_lm_loss|mlm_loss"
)
SAME = re.compile(
    r"labels\.to\(.*\)|kwargs\.pop\('shift_labels', (labels|None)\)"
    r"|labels\[\.\.\., 1:\]\.contiguous\(\)|\w*logits\[\.\.\., :-1, :\]\.contiguous\(\)"
)


def heads():
    """Name, file and `forward` of each class that takes labels and that `check_head` lets pass."""
    kinds = re.compile("|".join(LOSS_MAPPING))
    for path in sorted(Path(models.__file__).parent.glob("*/modeling_*.py")):
        for cls in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(cls, ast.ClassDef):
                continue
            kind = cls.name if cls.name in LOSS_MAPPING else kinds.search(cls.name)
            named = kind if isinstance(kind, str) else kind and kind.group()
            if named == QUESTION_ANSWERING:
                continue  # Those with labels, and not two positions, are refused.
            if named not in (*CLASSIFIERS, *LABELLERS) and not (
                named is None
                and (cls.name in builtin.NAMELESS or cls.name.endswith(builtin.NAMELESS_ENDINGS))
            ):
                continue
            for method in cls.body:
                if isinstance(method, ast.FunctionDef) and method.name == "forward":
                    if "labels" in {a.arg for a in method.args.args + method.args.kwonlyargs}:
                        yield cls.name, path, method


def strange(method):
    """What `forward` makes of labels and of losses in no known way."""
    for node in ast.walk(method):
        if isinstance(node, ast.AugAssign):
            targets = [node.target]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        else:
            continue
        names = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        value = ast.unparse(node.value)
        if any("loss" in name for name in names):
            if not PLAIN.fullmatch(value):
                yield value
        elif any("labels" in name for name in names) and not SAME.fullmatch(value):
            yield value


def hands_on(method):
    """Whether a model within gets the labels, which may be of one kind or the other."""
    return any(
        keyword.arg == "labels" and ast.unparse(call.func) != "self.loss_function"
        for call in ast.walk(method)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
    )


def guesses(method):
    """What `outputs_shift` says of the classes that `forward` returns, where it says anything."""
    labels = torch.zeros(2, 4, dtype=torch.long)
    for node in ast.walk(method):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
            name = ast.unparse(node.value.func)
            outputs = type(name, (dict,), {})(logits=torch.zeros(2, 4, 3))
            try:
                yield builtin.outputs_shift(outputs, labels)
            except ValueError:
                pass


@pytest.mark.slow
def test_every_head_has_a_plain_loss_or_a_place_in_the_tables():
    methods = {name: (path, method) for name, path, method in heads()}
    assert len(methods) > 600
    known = PLAIN_IN_FACT.union(*TABLES)
    new = {
        name: list(strange(method)) for name, (_, method) in methods.items() if name not in known
    }
    assert {name: values for name, values in new.items() if values} == {}
    listed = {*known, *builtin.UNSHIFTED, *builtin.NAMELESS}
    files = {path.parent for path, _ in methods.values()}
    written = "".join(f.read_text() for folder in files for f in folder.glob("modeling_*.py"))
    assert {name for name in listed if f"class {name}(" not in written} == set()
    for name, (path, method) in methods.items():
        source = ast.unparse(method)
        reads = "decoder_input_ids" in {a.arg for a in method.args.args}
        own = "self.loss_function(" in source and "shift_labels=" not in source
        # T5Gemma and Dia ask by another name for the loss that does not shift.
        own &= 'self.loss_type = "ForMaskedLM"' not in path.read_text(encoding="utf-8")
        shifts = own or re.search(r"labels\[(\.\.\.|:), 1:\]", source) is not None
        kind = builtin.NAMELESS.get(name, name)
        if hands_on(method) or name == "SeamlessM4Tv2TextToUnitForConditionalGeneration":
            continue  # The latter is an encoder-decoder that needs no inputs for its decoder.
        if name in builtin.OTHER_LOSS:
            continue
        if not kind.endswith(("ForCausalLM", "ForConditionalGeneration")):
            shifts = False
        if kind.endswith("ForCausalLM"):
            assert shifts == (name not in builtin.UNSHIFTED), name
        if kind.endswith("ForConditionalGeneration"):
            assert shifts == (not reads), name
        for guess in guesses(method):
            # Its outputs look like Llama's: refused once its file is imported, as here it is not.
            assert guess == shifts or name == "CpmAntForCausalLM", name

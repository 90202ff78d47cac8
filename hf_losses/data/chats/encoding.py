"""Turns prompts, completions and chats into tokens, and marks those that are learned."""

from __future__ import annotations

import json
import re
from itertools import groupby
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from hf_losses.data.chats.rows import TOOLS, without_none
from hf_losses.messages import UsageError

MARKS_ASSISTANT = re.compile(r"\{%-?\s*generation\s*-?%\}")


def row_tokens(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[float]]:
    """The tokens of a row, with an EOS at the end, and their weights: 0 if one is not learned."""
    eos = tokenizer.eos_token_id
    if "messages" not in row:
        prompt = prompt_tokens(row, tokenizer, where)
        whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        completion = _continuation(prompt, whole, row["completion"], tokenizer)
        completion += [eos] * (completion[-1] != eos)
        (weight,) = row["weights"]
        return prompt + completion, [0.0] * len(prompt) + [weight] * len(completion)
    # Turns after the last one that is learned have no influence on it.
    last = max(turn for turn, weight in enumerate(row["weights"]) if weight)
    weights = row["weights"][: last + 1]
    messages, tools = without_none(row["messages"][: len(weights)]), _tools(row)
    if MARKS_ASSISTANT.search(_template(tokenizer, where)):
        encoding = _render(messages, tokenizer, where, **tools, return_assistant_tokens_mask=True)
        ids, marks = encoding["input_ids"], encoding["assistant_masks"]
        if 1 not in marks:
            raise UsageError(f"{where}: the chat template marks nothing as the assistant's")
        turns = zip(messages, weights, strict=True)
        answers = [weight for turn, weight in turns if turn["role"] == "assistant"]
        learned = _weigh(marks, answers, where)
        end = max(i for i, weight in enumerate(learned) if weight) + 1
        start = end - [*map(bool, learned[:end][::-1]), False].index(False)
    else:
        if len({weight for weight in weights if weight}) > 1:
            raise UsageError(
                f"{where}: only the last turn is learned, since the chat template marks no turn by "
                "{% generation %}: mark the assistant's turns, or give those before it the weight 0"
            )
        if not last:
            raise UsageError(
                f"{where}: the only turn that is learned answers nothing; it needs one before it"
            )
        prompt = _render(messages[:-1], tokenizer, where, tokenize=False, generate=True, **tools)
        text = _render(messages, tokenizer, where, tokenize=False, **tools)
        if not text.startswith(prompt):
            raise UsageError(
                f"{where}: the chat without its last turn is not how the whole chat begins, so "
                "that turn cannot be told apart; mark the assistant's turns in the chat template "
                "by {% generation %} … {% endgeneration %}"
            )
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        start = len(ids)
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += _continuation(ids, whole, text[len(prompt) :], tokenizer)
        learned = [0.0] * start
    turn = ids[start:]
    # Generation ends at the EOS: what the template writes after it, such as a line break, is cut.
    turn = turn[: len(turn) - turn[::-1].index(eos)] if eos in turn else [*turn, eos]
    return ids[:start] + turn, learned[:start] + [weights[-1]] * len(turn)


def _continuation(
    prompt: list[int], whole: list[int], text: str, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """The tokens of a text that goes on from a prompt, whose tokens are those of the generation.

    They are those that the text has in the whole: alone, some tokenizers put a space before it.
    Where the whole joins the end of the prompt to the text, the text has its own.
    """
    if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
        return whole[len(prompt) :]
    own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return own


def _weigh(marks: list[int], weights: list[float], where: str) -> list[float]:
    """Gives the tokens that a template marks as the assistant's the weights of its turns."""
    if len(set(weights)) == 1:
        return [mark * weights[0] for mark in marks]
    runs = [(bool(mark), [*run]) for mark, run in groupby(marks)]
    if sum(mark for mark, _ in runs) != len(weights):
        raise UsageError(
            f"{where}: the chat template does not mark the assistant's turns one by one, so that "
            "those with one weight cannot be told from those with another"
        )
    turns = iter(weights)
    weighed = [(next(turns) if mark else 0.0, run) for mark, run in runs]
    return [weight for weight, run in weighed for _ in run]


def prompt_tokens(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    """The tokens of a row's prompt; a chat ends with the beginning of the assistant's turn."""
    if "messages" in row:
        messages = without_none(row["messages"])
        history = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        text = _render(history, tokenizer, where, tokenize=False, generate=True, **_tools(row))
        rendered: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return rendered
    ids: list[int] = tokenizer(row["prompt"])["input_ids"]
    # Some tokenizers end every text with an EOS.
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def _tools(row: dict[str, Any]) -> dict[str, Any]:
    """What a template is told of the tools that a chat may use."""
    tools = json.loads(row.get(TOOLS, "[]"))
    return {TOOLS: tools} if tools else {}


def _template(tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    try:
        template: str = tokenizer.get_chat_template()
        return template
    except ValueError as error:
        raise UsageError(
            f"{where} is a chat, but the tokenizer has no chat template: take a model that was "
            "made for chats, or columns of prompts and completions"
        ) from error


def _render(
    messages: list[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    generate: bool = False,
    **options: Any,
) -> Any:
    _template(tokenizer, where)
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=generate, **options)
    except jinja2.TemplateError as error:
        raise UsageError(f"{where}: the chat template refuses it: {error}") from error

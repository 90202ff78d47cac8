"""Sentences, words with tags, images and chats: reading, checking, and making model inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_losses.lazy import attributes

if TYPE_CHECKING:
    from hf_losses.data.chats.dataset import SENTIMENTS, ChatArguments, Conversations
    from hf_losses.data.images.dataset import ImageArguments, ImageData
    from hf_losses.data.images.files import DIGITS
    from hf_losses.data.images.inputs import (
        AugmentationArguments,
        ModelInputs,
        NewEpoch,
        training_inputs,
    )
    from hf_losses.data.movie_reviews import load_movie_reviews
    from hf_losses.data.text.arguments import TextArguments
    from hf_losses.data.text.dataset import TextData
    from hf_losses.data.tokens.conll import read_conll, write_conll
    from hf_losses.data.tokens.dataset import CAPITALS, TokenArguments, TokenData
    from hf_losses.data.tokens.windows import join_windows, make_windows

# The module of each public name, imported with the first use of the name.
_MODULES = {
    "AugmentationArguments": "data.images.inputs",
    "CAPITALS": "data.tokens.dataset",
    "ChatArguments": "data.chats.dataset",
    "Conversations": "data.chats.dataset",
    "DIGITS": "data.images.files",
    "ImageArguments": "data.images.dataset",
    "ImageData": "data.images.dataset",
    "ModelInputs": "data.images.inputs",
    "NewEpoch": "data.images.inputs",
    "SENTIMENTS": "data.chats.dataset",
    "TextArguments": "data.text.arguments",
    "TextData": "data.text.dataset",
    "TokenArguments": "data.tokens.dataset",
    "TokenData": "data.tokens.dataset",
    "join_windows": "data.tokens.windows",
    "load_movie_reviews": "data.movie_reviews",
    "make_windows": "data.tokens.windows",
    "read_conll": "data.tokens.conll",
    "training_inputs": "data.images.inputs",
    "write_conll": "data.tokens.conll",
}

__all__ = [
    "CAPITALS",
    "DIGITS",
    "SENTIMENTS",
    "AugmentationArguments",
    "ChatArguments",
    "Conversations",
    "ImageArguments",
    "ImageData",
    "ModelInputs",
    "NewEpoch",
    "TextArguments",
    "TextData",
    "TokenArguments",
    "TokenData",
    "join_windows",
    "load_movie_reviews",
    "make_windows",
    "read_conll",
    "training_inputs",
    "write_conll",
]

__getattr__ = attributes(__name__, _MODULES)

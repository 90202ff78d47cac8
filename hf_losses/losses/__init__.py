"""The losses: a registry of them, their maths, and modules made of it. Needs torch alone."""

# They register the losses.
from hf_losses.losses import classification, regression

__all__ = ["classification", "regression"]

"""The loss of a step: which one it is, its weights and warm-up, and what it is divided by."""

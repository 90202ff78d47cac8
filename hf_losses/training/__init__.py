"""Training with any loss: arguments, trainer, and what they are made of."""

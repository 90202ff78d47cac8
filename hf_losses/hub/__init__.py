"""The files of a run for the Hub: the loss file, the model card, and their upload."""

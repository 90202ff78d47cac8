"""Losses for the trainers of transformers and of other libraries."""

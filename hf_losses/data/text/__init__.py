"""Sentences and pairs of sentences with labels."""

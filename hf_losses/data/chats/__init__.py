"""Prompts with completions, and chats."""

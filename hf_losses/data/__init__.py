"""Data: sentences, words with tags, images and chats, read, checked and made inputs of a model."""

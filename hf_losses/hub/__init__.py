"""What a run leaves for the Hub: its loss file, its card, and how they are uploaded."""

"""`hf-losses run`: an unmodified script with another loss."""

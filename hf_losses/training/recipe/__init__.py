"""What the recipes share: their arguments, and the steps around Trainer's."""

"""A search for the loss and the learning rate: its space, and its study."""

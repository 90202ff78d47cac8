"""A search for the loss and the learning rate: what it chooses from, and its study."""

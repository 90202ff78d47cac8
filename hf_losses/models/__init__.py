"""What is known of models: what a head is, its built-in loss, what its decoder reads."""

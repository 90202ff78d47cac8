"""Facts about models: their heads, built-in losses, decoder inputs and limits, and loading them."""

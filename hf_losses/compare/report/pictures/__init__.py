"""The pictures of a comparison: a function makes a matplotlib figure, `draw` writes them."""

"""The report of a comparison: words, pictures and files."""

"""The losses: a registry of them, their maths, and modules made of it. Needs torch alone."""

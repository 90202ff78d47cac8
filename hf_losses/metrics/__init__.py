"""Metrics of tasks, which of them are better when lower, and the calibration error."""

"""What paired runs show: differences, their intervals and tests, power, time to the baseline."""

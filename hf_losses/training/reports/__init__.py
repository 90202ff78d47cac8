"""What a training and an evaluation report: losses over all items, statistics, bad steps."""

"""What makes the runs of a comparison: processes of this machine, or tasks of a Ray cluster."""

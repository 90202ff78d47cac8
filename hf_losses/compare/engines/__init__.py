"""What makes the runs of a comparison: processes of this machine."""

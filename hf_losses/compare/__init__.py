"""Comparing losses with paired seeds: plan, runs, statistics, report."""

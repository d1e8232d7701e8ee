"""Runs: the fold of a run's journal, its recovery, and the actor that is its single writer."""

"""Backups, restores, checks and compaction of what the store holds."""

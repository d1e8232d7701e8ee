"""What the daemon keeps: LMDB behind one writer thread, journals, checkpoints, per-example history, the
registry.
"""

"""Generated code of the disk formats."""

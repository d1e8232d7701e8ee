"""What draws: drawers that several methods share. A method itself is a small model and one pure function."""

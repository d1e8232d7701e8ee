"""What draw methods have in common: each engine does the work of a family, and a method adds one pure function."""

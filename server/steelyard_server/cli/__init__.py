"""The `steelyard` command: one verb a file. It parses and prints; the daemon and the client library do the work."""

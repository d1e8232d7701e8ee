"""The daemon: journals loss histories, draws batches, serves them over gRPC."""

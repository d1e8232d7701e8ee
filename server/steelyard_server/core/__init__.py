"""The pure sampling core: arrays and events in, arrays out. No gRPC, no LMDB, no clock, no threads."""

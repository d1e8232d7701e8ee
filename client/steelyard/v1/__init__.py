"""Generated from proto/steelyard/v1 by `make gen`. Not to be edited."""

"""Generated from proto/steelyard_server/disk/v1 by `make gen`. Not to be edited."""

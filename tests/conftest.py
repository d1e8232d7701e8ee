"""What holds for every test: examples are the same on every run, and no time limit hangs on a busy machine."""

from hypothesis import settings

import steelyard  # noqa: F401 -- before any test imports gRPC: see steelyard.forking

settings.register_profile("house", derandomize=True, database=None, deadline=None, print_blob=True)
settings.load_profile("house")

"""What holds for every test: examples are the same on every run, and no time limit hangs on a busy machine."""

from hypothesis import settings

settings.register_profile("house", derandomize=True, database=None, deadline=None, print_blob=True)
settings.load_profile("house")

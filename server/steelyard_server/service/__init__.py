"""The gRPC edge: look up, call, convert. No policy lives here."""

"""The methods as they describe themselves: for the command line, for METHODS.md, for whoever asks."""

from steelyard_server.catalogue.entries import Entry, entries, find
from steelyard_server.catalogue.parameters import REQUIRED, Parameter

__all__ = ["REQUIRED", "Entry", "Parameter", "entries", "find"]

"""Pictures of what a method does to a distribution of losses, by the method's own code."""

from steelyard_server.plots.losses import DEFAULT, default_losses, read_losses
from steelyard_server.plots.picture import PlotError, save

__all__ = ["DEFAULT", "PlotError", "default_losses", "read_losses", "save"]

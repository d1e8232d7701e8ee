"""Steelyard: a service that remembers the loss of every training example and decides which come next."""

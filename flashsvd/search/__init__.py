"""Ranks for a budget, or for a loss: everything that runs a model to choose them."""

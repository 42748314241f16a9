"""How good a model is, as it is or compressed."""

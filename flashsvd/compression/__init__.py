"""Compressed checkpoints: made in memory or layer by layer, and refitted."""

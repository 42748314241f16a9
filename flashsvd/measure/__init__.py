"""Measurements: each returns plain data with units in the names, never a picture."""

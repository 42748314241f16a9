"""Data -> plotly Figure. Pure functions: nothing is measured, shown or read here."""

"""Kept runs: what a list says of them, two side by side, and files that carry them away and back."""

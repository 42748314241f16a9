"""Engines: one HF model, its linears or its whole blocks exchanged. Same call, same outputs."""

ENGINES = ("dense", "lowrank", "flash")

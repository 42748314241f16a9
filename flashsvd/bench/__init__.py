"""Benchmarks: fair baselines and ours in one run, each judged for correctness before it may claim a ratio."""

"""Training with transformers' Trainer: dense models on tasks, factors back towards the dense model."""

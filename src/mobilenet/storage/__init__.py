"""Weights in files: the model folder, and what else weights are read from."""

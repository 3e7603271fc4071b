"""From photos to a model. Nothing outside this package imports torch."""

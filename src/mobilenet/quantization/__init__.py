"""From a trained float32 model and a few dozen photos to an int8 model."""

"""From a folder or list of labelled photos to decoded pixels on disk."""

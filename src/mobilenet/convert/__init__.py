"""Models from other programs' files."""

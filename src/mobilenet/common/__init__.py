"""What the other modules share: checks, files, text, threads, progress."""

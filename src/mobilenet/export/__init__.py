"""Models as other runtimes' files, each run again in its own runtime."""

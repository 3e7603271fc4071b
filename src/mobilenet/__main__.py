"""`python -m mobilenet` is the command `mobilenet`; torchrun starts it this way."""

from .cli import process

if __name__ == "__main__":
    raise SystemExit(process())

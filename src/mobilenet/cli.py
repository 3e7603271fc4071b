"""The command `mobilenet`: arguments in, one of `commands` called, and an exit code.

Exit codes: 0 done, 1 failed, 2 usage, 3 bad data, 4 a quality gate failed; 130 and 143 after an interrupt. argparse and
not a richer library because its import takes 8 ms of the 0.2 s that `mobilenet cost` may take.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from . import __version__
from .commands import COMMANDS, Arguments
from .errors import MobileNetError, UsageError


def process() -> int:
    """Runs the process's command line and returns the exit code, which the process is to end with."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding = sys.stderr.encoding
        sys.stderr = _Stderr(sys.stderr.detach(), encoding, line_buffering=True)
    gc.set_threshold(100_000)  # a start makes some 40,000 objects that stay: to look for garbage in them takes 10 ms
    warnings.formatwarning = lambda message, *_, **__: f"mobilenet: {message}\n"  # without the line of our source
    code = main()
    gc.freeze()  # else Python would look for cycles once more, in all of numpy: a twelfth of the time of `predict`
    return code


class _Stderr(io.TextIOWrapper):
    """Is a stderr without which all goes on: on a full disk too the exit code says what its text would."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BlockingIOError:  # full for now
            return len(text)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # what waits to be written goes there
            return len(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's) and returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    code = _run(given)
    try:
        sys.stdout.flush()  # here and not when Python ends, which has an exit code of its own for a full disk
        return code
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        pass
    except OSError as error:
        print(f"mobilenet: stdout: can't be written: {error.strerror}", file=sys.stderr)
        code = code or 1
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would try once more
    return code


def _run(given: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        args = _parser(given).parse_args(given)
    except SystemExit:  # argparse has printed its help or the version
        return 0
    except UsageError as error:  # and this
        if "--json" in given:
            _error_document(str(error), error.exit_code)
        return error.exit_code
    try:
        return int(args.run(args))
    except MobileNetError as error:
        return _failed(args, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _failed(args, "interrupted", 130)
    except BrokenPipeError:
        return 0
    except (OSError, MemoryError) as error:
        return _failed(args, f"{type(error).__name__}: {error}", 1)


def _failed(args: Arguments, text: str, code: int) -> int:
    text = text.removeprefix(f"{args.command}: ")
    print(f"mobilenet {args.command}: {text}", file=sys.stderr)
    if getattr(args, "json", False):
        _error_document(text, code)
    return code


def _error_document(text: str, code: int) -> None:
    with contextlib.suppress(OSError):  # where it can't be written, the exit code still says what it would
        print(json.dumps({"error": text, "exit_code": code}))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise UsageError(message)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    # What argparse asks how wide the terminal is takes 4 ms to import: it is asked for help only.
    width = None if {"-h", "--help"} & set(argv) else 80
    formatter = partial(argparse.RawDescriptionHelpFormatter, width=width)
    parser = _Parser(
        prog="mobilenet",
        description="MobileNet V1 and V2, from formula to labels.",
        epilog="examples:\n" + "\n".join(f"  {command.example}" for command in COMMANDS.values()),
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mobilenet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = next((word for word in argv if not word.startswith("-")), None)
    # A command that comes first is all that is looked at; each of the others' parsers would take a millisecond.
    wanted = {named: COMMANDS[named]} if named in COMMANDS and argv[0] == named else COMMANDS
    for name, command in wanted.items():
        sub = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=formatter,
            allow_abbrev=False,
        )
        if name == named:  # the others' arguments may need imports that this command does not
            command.arguments(sub)
            sub.add_argument("--json", action="store_true", help="one JSON document on stdout, all else on stderr")
            sub.set_defaults(run=command.run)
    return parser

"""Errors that say what was given, what was needed and what to do; each carries the exit code of the command line."""


class MobileNetError(Exception):
    """Is the parent of every error that `mobilenet` raises on purpose; the command line prints its text only."""

    exit_code = 1


class UsageError(MobileNetError, ValueError):
    """An argument is outside its rule; the text names the argument, its value and the rule. Exit code 2."""

    exit_code = 2


class DataError(MobileNetError, ValueError):
    """A file or folder that was given can't be used; the text names it and what is wrong with it. Exit code 3."""

    exit_code = 3


class PhotoError(DataError):
    """A photo can't be read: not an allowed format, damaged, or beyond a limit."""


class DatasetError(DataError):
    """A data set can't be used: no photos, no classes, labels that name no file, too many broken photos."""


class ModelError(DataError):
    """A model folder or checkpoint can't be used: a bad config, a tensor that does not fit, a damaged file."""


class GateError(MobileNetError):
    """The work was done and its result missed a limit that was asked for. Exit code 4."""

    exit_code = 4

"""The one exception for what a user can put right."""

import sys
from collections.abc import Callable

LONGEST = 490  # characters of a message; with `error: ` before it, below 500


class InputError(Exception):
    """Bad input: a file, a flag, a setting, a work directory.

    The message is one line: what was found, where, what was expected, what to do.
    `create_jax.main` prints it alone, without a traceback, and exits with code 2. What
    a file brings into it is made printable; a long message loses its middle.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message, LONGEST))


class StorageError(InputError):
    """A disk that is full or away, or files on it that cannot be read. Other settings
    would not help."""


class AgreedError(InputError):
    """Raised in all processes of a cluster alike: process 0 says it for all."""


def exit_code(run: Callable[[], object]) -> int:
    """Of a command: 0, or 2 after an InputError or OSError as one line on stderr."""
    try:
        run()
    except (InputError, OSError) as error:
        text = about_file(error) if isinstance(error, OSError) else error
        print(f"error: {text}", file=sys.stderr)
        return 2
    return 0


def about_file(error: OSError) -> str:
    """What the system says of a file or disk, in one line."""
    reason = f"{error.filename or 'a file'}: {error.strerror or error}"
    return f"{reason}; put that right and run again"


def one_line(text: object, longest: int) -> str:
    """At most `longest` printable characters of a text, its middle left out."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    half = (longest - 3) // 2
    return line if len(line) <= longest else f"{line[:half]}...{line[-half:]}"


def bad_setting(key: str, found: object, expected: str) -> InputError:
    """The error of a setting's value: what it is, what was expected."""
    return InputError(
        f"config.{key} is {found!r}; expected {expected}; set it with --config.{key}="
    )

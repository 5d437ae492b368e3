"""The one exception for what a user can put right."""


class InputError(Exception):
    """Bad input: a file, a flag, a setting, a work directory.

    The message is one line: what was found, where, what was expected, what to do.
    `create_jax.main` prints it alone, without a traceback, and exits with code 2.
    """


class StorageError(InputError):
    """A disk that is full or away, or files on it that cannot be read. Other settings
    would not help."""

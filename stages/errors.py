"""The error that a person can mend."""


class InputError(Exception):
    """Something the user gave is wrong. The message names the file, the key and what was expected."""

"""The one error that is shown to people as it is."""


class InputError(ValueError):
    """What was found, what was expected and what to do, in one line; verbs print it and exit with 1."""

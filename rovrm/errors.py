"""The one exception that stands for a user's mistake: commands print it as one line and exit with status 2."""


class UserError(Exception):
    """A mistake in a file, a row or a setting. The message names the thing, its value and the remedy."""

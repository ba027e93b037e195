"""The errors that a user can meet. Each message is one line that says what is wrong and what to do."""


class MedVLMError(Exception):
    """Something failed that the user can read about in one line. The commands exit with `exit_code`."""

    exit_code = 1


class InputError(MedVLMError):
    """The input is wrong: an image, a question, an option, a path. Nothing was done."""

    exit_code = 2


class BundleError(InputError):
    """The bundle is missing, damaged, or made for another version."""


class CheckpointError(InputError):
    """The checkpoint cannot be converted as it is."""

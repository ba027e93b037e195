"""The errors that a user can meet. Each message is one line that says what is wrong and what to do."""


class MedVLMError(Exception):
    """Something failed that the user can read about in one line. The commands exit with `exit_code`."""

    exit_code = 1


class InputError(MedVLMError):
    """The input is wrong: an image, a question, an option, a path. Nothing was done."""

    exit_code = 2


class AuditError(MedVLMError):
    """The audit log cannot be written, so that no answer may be given."""


class Interrupted(MedVLMError):  # noqa: N818 - somebody wanted it so
    """Another thread ended the computation; see `medvlm.runtime.interruption`."""


class BundleError(InputError):
    """The bundle is missing, damaged, or made for another version."""


class CheckpointError(InputError):
    """The checkpoint cannot be converted as it is."""


def first_line(error: Exception) -> str:
    """The first line of what a library's error says, at most 300 characters of it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def plain(text: str) -> str:
    r"""`text` with everything unprintable escaped: a file may be named `a\nb`, or hold a terminal's control codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

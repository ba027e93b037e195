"""The first 132 bytes of a DICOM file: 128 that may hold anything, and the mark."""

MARK_AT = 128
MARK = b"DICM"
HEAD_BYTES = MARK_AT + len(MARK)
PROGRAM = "has a program in front of its DICOM content; it may be malware: do not open it"

# A file may be a program as well: Windows', Linux', macOS', a script.
_PROGRAMS = (b"MZ", b"\x7fELF", b"\xfe\xed\xfa", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"#!")


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these bytes is DICOM Part 10."""
    return head[MARK_AT:HEAD_BYTES] == MARK


def is_program(head: bytes) -> bool:
    """Whether a file that starts with these bytes could be run."""
    return head.startswith(_PROGRAMS)

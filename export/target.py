"""The machine that a kit is for: which wheels fit it, and how requirements' markers read there."""

import platform
import re
import sys
import sysconfig
from dataclasses import dataclass

from ..runtime.errors import InputError

_LINUX = re.compile(r"manylinux_2_(\d+)_(\w+)")
_OTHER = re.compile(r"win_(amd64|arm64)|macosx_\d+_\d+_(arm64|x86_64)")
_PYTHON = re.compile(r"3\.(\d+)")
# glibc's versions by their old names, which older wheels have.
_OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_SYSTEMS = {
    "manylinux": ("posix", "linux", "Linux"),
    "win": ("nt", "win32", "Windows"),
    "macosx": ("posix", "darwin", "Darwin"),
}
_DEFAULT_GLIBC = 28


@dataclass(frozen=True)
class Target:
    """tag: the wheels' platform, `manylinux_2_28_x86_64`, `win_amd64`, `macosx_14_0_arm64`. python: `3.12`.

    Raises `InputError` for others.
    """

    tag: str
    python: str

    def __post_init__(self) -> None:
        if not (_LINUX.fullmatch(self.tag) or _OTHER.fullmatch(self.tag)):
            raise InputError(
                f"--kit-platform {self.tag!r} is not known; give one like manylinux_2_28_x86_64, win_amd64 or "
                "macosx_14_0_arm64"
            )
        if not _PYTHON.fullmatch(self.python):
            raise InputError(f"--kit-python {self.python!r} is not known; give one like 3.12")

    @property
    def windows(self) -> bool:
        """Whether its commands are Windows'."""
        return self.tag.startswith("win")

    @property
    def tags(self) -> list[str]:
        """The platforms of wheels that fit: Linux's with an older glibc too. pip adds those of older macOS itself."""
        linux = _LINUX.fullmatch(self.tag)
        if not linux:
            return [self.tag]
        tags = []
        for glibc in range(int(linux[1]), 4, -1):
            tags += [f"manylinux_2_{glibc}_{linux[2]}"]
            tags += [f"{_OLD_NAMES[glibc]}_{linux[2]}"] if glibc in _OLD_NAMES else []
        return tags

    @property
    def markers(self) -> dict[str, str]:
        """What environment markers (PEP 508) are compared with there."""
        os_name, sys_platform, system = _SYSTEMS[self.tag.partition("_")[0]]
        machine = re.sub(r"^(manylinux_\d+_\d+|win|macosx_\d+_\d+)_", "", self.tag)
        return {
            "os_name": os_name,
            "sys_platform": sys_platform,
            "platform_system": system,
            "platform_machine": machine.upper() if self.windows else machine,
            "platform_release": "",
            "platform_version": "",
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
        }


def this_machine() -> Target:
    """The machine that this runs on, with a Linux as old as onnxruntime's wheels want."""
    tag = re.sub(r"[-.]", "_", sysconfig.get_platform())
    if sys.platform.startswith("linux"):
        tag = f"manylinux_2_{_DEFAULT_GLIBC}_{platform.machine()}"
    return Target(tag, this_python())


def this_python() -> str:
    """The version of this Python, as `Target` has it."""
    return f"3.{sys.version_info.minor}"

"""Takes the right to write files from one thread, for good: Landlock, which Linux has since 5.13.

Only the thread that asks is bound, and the threads that it starts; no rights of root are needed,
and none undo it. What was open before stays usable. Where the kernel has no Landlock nothing
happens, and `restrict` says so.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

#: System calls, alike on all architectures but Alpha.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # flag of the first: tell the version of the interface
_PATH_BENEATH = 1  # type of a rule
_NO_NEW_PRIVILEGES = 38  # option of prctl; the kernel asks for it first

_WRITE_FILE = 1 << 1
#: Removing folders and files, making devices, folders, files, sockets, pipes and links.
_CHANGE_FOLDERS = sum(1 << bit for bit in range(4, 13))
#: What later versions of the interface added: moving between folders, and truncating.
_LATER = {2: 1 << 13, 3: 1 << 14}


def restrict(writable: Iterable[Path]) -> bool:
    """Let the calling thread write below some folders, which exist, and nowhere else.

    Returns:
        Whether the kernel does so; False leaves everything as it was.

    Raises:
        OSError: a folder is not there.
    """
    if not sys.platform.startswith("linux"):
        return False
    call = ctypes.CDLL(None, use_errno=True)
    abi = call.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if abi < 1:
        return False
    rights = _WRITE_FILE | _CHANGE_FOLDERS
    rights |= sum(right for since, right in _LATER.items() if abi >= since)
    rules = call.syscall(_CREATE_RULESET, struct.pack("Q", rights), ctypes.c_size_t(8), 0)
    if rules < 0:
        return False
    try:
        for folder in writable:
            place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", rights, place)
                _done(call.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0))
            finally:
                os.close(place)
        _done(call.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        return call.syscall(_RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(rules)


def _done(status: int) -> None:
    """Turn a status into an exception where it is an error."""
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

"""What a grading worker cannot do: it reads text that a model wrote, so its process is confined.

Limits come from the kernel: wall time and processor time per response (timers in `judge`), address space, no core
files. Beyond those, `isolate` (once, in the process that forks the workers) and `confine` (in each worker) put up as
many of three barriers as the system allows, and say which stand; `Grader.confinement()` tells the caller.

`seccomp` holds against any code in the worker, native or Python: it cannot make a socket of any family, connect, start
a process or thread, execute a program, signal another process, open a file for writing, or change the file system.
Linux on x86-64 and aarch64, unprivileged, also within containers.

`namespace` holds against any code: the only network interface is a loopback of its own, which is down. Linux where user
namespaces are allowed, or as root; many containers and some distributions refuse.

`audit hook` holds against Python code: the actions named above raise PermissionError. Everywhere; native code could
pass it by.

So on Linux the worker has no network whatever it runs. On macOS that holds for Python code alone, and the limit of
memory is advice, as its kernel does not enforce one on the address space. Reading files is allowed: sympy imports
modules when it first needs them. What a worker says reaches the caller as JSON with texts of 500 characters at most.

A program that a model wrote (`code`, `programs`) runs in a process of its own, see `program_sandbox`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Any

# System calls that are refused: name -> number on x86-64, on aarch64 (None: there is no such call).
_REFUSED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "accept": (43, 202),
    "accept4": (288, 242),
    "bind": (49, 200),
    "listen": (50, 201),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "io_uring_setup": (425, 425),  # would do all of these without a call of its own
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "bpf": (321, 280),
    "memfd_create": (319, 279),
    "openat2": (437, 437),
    "creat": (85, None),
    "truncate": (76, 45),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
}

_OPENING = ((2, 1), (257, 2)), ((None, 1), (56, 2))  # open, openat: the call's number, and which argument is its flags
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, the kernel's name of it

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of the filter's machine
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM

# Python's audit events for the same actions; "open" is judged by its flags.
_EVENTS = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.kill",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
    "os.truncate",
    "shutil.",
    "ctypes.",
    "pty.",
    "webbrowser.",
    "urllib.",
    "http.",
    "ftplib.",
    "smtplib.",
)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def isolate() -> list[str]:
    """Leave the network behind, for this process and those it forks; the barriers that this put up.

    To be called while the process has a single thread, after its imports: its user is nobody afterwards, and may no
    longer read what only root's privileges opened to it.
    """
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET):
        if libc.unshare(flags) == 0:
            return ["namespace"]
    return []


def confine(memory_limit: int) -> list[str]:
    """Limit this process for good, see the module's table; the barriers that stand (besides those of `isolate`)."""
    import resource

    _limit({resource.RLIMIT_AS: memory_limit, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0})
    sys.dont_write_bytecode = True
    barriers = ["seccomp"] if _filter_calls() else []
    sys.addaudithook(_refuse)
    return [*barriers, "audit hook"]


def _limit(limits: dict[int, int]) -> None:
    import resource

    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit on the address space
            resource.setrlimit(limit, (value, value))


def _filter_calls() -> bool:
    if sys.platform != "linux" or platform.machine() not in _MACHINES or sys.maxsize < 2**32:
        return False
    return _install(_filter(*_MACHINES[platform.machine()]))


def _install(code: bytes) -> bool:
    """Have the kernel ask this filter, besides earlier ones, about each system call; whether it does."""
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = _Program(len(code) // 8, code)
    zero = ctypes.c_ulong(0)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    return (
        libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) == 0
        and libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(instructions), zero, zero) == 0
    )


def _filter(column: int, machine: int) -> bytes:
    """The filter as instructions of 8 bytes: operation, jump if true, jump if false, operand."""
    refuse = struct.pack("=HBBI", _RETURN, 0, 0, _REFUSE)
    code = [
        struct.pack("=HBBI", _LOAD, 0, 0, 4),  # the machine that the call is of: another one's numbers mean other calls
        struct.pack("=HBBI", _EQUAL, 1, 0, machine),
        struct.pack("=HBBI", _RETURN, 0, 0, _KILL),
        struct.pack("=HBBI", _LOAD, 0, 0, 0),  # the call's number
        struct.pack("=HBBI", _AT_LEAST, 0, 1, 0x40000000),  # x86-64's calls with short pointers
        refuse,
    ]
    for numbers in _REFUSED.values():
        if numbers[column] is not None:
            code += [struct.pack("=HBBI", _EQUAL, 0, 1, numbers[column]), refuse]
    for number, argument in _OPENING[column]:
        if number is not None:
            code += [
                struct.pack("=HBBI", _EQUAL, 0, 4, number),
                struct.pack(
                    "=HBBI", _LOAD, 0, 0, 16 + 8 * argument
                ),  # the lower half, as both machines are little-endian
                struct.pack("=HBBI", _ANY_BIT, 0, 1, _WRITING),
                refuse,
                struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW),
            ]
    return b"".join([*code, struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW)])


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        refused = bool(isinstance(flags, int) and flags & _WRITING) or bool(
            isinstance(mode, str) and set(mode) & set("wax+")
        )
    else:
        refused = event.startswith(_EVENTS)
    if refused:
        raise PermissionError(errno.EPERM, f"a grading worker may not do this: {event}")

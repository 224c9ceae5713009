"""Confine the processes that read text, or run programs, which a model wrote.

`confine` (in each grading worker, and in the process of each program) puts up the barriers that the system has:

- `seccomp`: the kernel refuses the system calls of `_REFUSED`, whether Python or native code makes them. The process
  cannot open a socket, start a process, execute a file, signal, trace or reschedule another process, open a file for
  writing, or change the file system. Linux on x86-64 and aarch64, unprivileged, also in containers.
- `audit hook`: the same actions raise PermissionError in Python code. Everywhere, but native code can evade it.

The kernel also limits address space, file size and core dumps (macOS does not enforce the first). Grading workers may
read files, because sympy imports modules late. Where programs run, `bubblewrap` hides all files but Python's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import shutil
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from quagmire_utils.core.errors import ParameterError

# Refused system calls: name, number on x86-64, number on aarch64 (- where there is no such call).
_REFUSED = """
socket 41 198, socketpair 53 199, connect 42 203, accept 43 202, accept4 288 242, bind 49 200, listen 50 201,
sendto 44 206, sendmsg 46 211, sendmmsg 307 269, io_uring_setup 425 425, fork 57 -, vfork 58 -, execve 59 221,
execveat 322 281, kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240,
pidfd_open 434 434, pidfd_getfd 438 438, pidfd_send_signal 424 424, ptrace 101 117, process_vm_readv 310 270,
process_vm_writev 311 271, process_madvise 440 440, setpriority 141 140, ioprio_set 251 30, sched_setparam 142 118,
sched_setscheduler 144 119, sched_setaffinity 203 122, sched_setattr 314 274, setsid 112 157, setpgid 109 154,
unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, sethostname 170 161,
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, memfd_create 319 279, memfd_secret 447 447, shmget 29 194,
semget 64 190, msgget 68 186, mq_open 240 180, add_key 248 217, request_key 249 218, keyctl 250 219, openat2 437 437,
creat 85 -, truncate 76 45, rename 82 -, renameat 264 38, renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -,
link 86 -, linkat 265 37, unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36, mknod 133 -, mknodat 259 33,
chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, fchownat 260 54,
utimensat 280 88
"""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of the filter
# Calls that one argument decides: number on x86-64, on aarch64, argument, test, operand, whether a match is refused.
_DECIDED = (
    (2, None, 1, _ANY_BIT, _WRITING, True),  # open
    (257, 56, 2, _ANY_BIT, _WRITING, True),  # openat
    (56, 220, 0, _ANY_BIT, _CLONE_THREAD, False),  # clone: threads only
    (302, 261, 0, _EQUAL, 0, False),  # prlimit64: of the process itself only
    *((72, 25, 1, _EQUAL, command, True) for command in (8, 10, 15)),  # fcntl: no signals from the kernel to others
)
_CLONE3 = 435  # hides its flags from a filter; told that it does not exist, the C library uses clone
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, the kernel's number for the machine
_ALLOW, _KILL, _REFUSE, _MISSING = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
_SET_SECCOMP, _SET_NO_NEW_PRIVS, _FILTER_MODE = 22, 38, 2  # options of prctl

# Python's audit events for the same actions; "open" is judged by its flags.
_EVENTS, _HARMLESS = ("socket.", "subprocess.", "shutil.", "ctypes.", "os."), ("os.listdir", "os.scandir")


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def bubblewrap() -> list[str]:
    """Return the bwrap command that runs Python without network and with no files but Python's, read-only."""
    package = Path(__file__).resolve().parents[1]
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"]
    variables = {"PYTHONPATH": str(package.parent), "PYTHONHASHSEED": "0", "HOME": "/"}
    for name, value in (variables | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}).items():
        command += ["--setenv", name, value]
    libraries = [f"{folder}/lib{bits}" for folder in ("", "/usr", "/usr/local") for bits in ("", "64")]
    others = ("/etc/ld.so.cache", "/usr/share/zoneinfo", sys.base_prefix, sys.prefix, str(package))
    for path in dict.fromkeys((*libraries, *others)):
        command += ["--ro-bind-try", path, path]
    for path in ("/dev/null", "/dev/urandom"):
        command += ["--dev-bind", path, path]
    return [*command, "--remount-ro", "/", "--chdir", "/"]


@cache
def check_bubblewrap() -> None:
    """Raise ParameterError where programs cannot be confined."""
    if shutil.which("bwrap") is None:
        reason = "the grader code runs programs in a sandbox; install the system's package bubblewrap (command bwrap)"
        raise ParameterError("grader", "code", reason=reason)
    code = "from quagmire_utils.grading.sandbox import confine; print(confine(2**31))"
    done = subprocess.run([*bubblewrap(), sys.executable, "-P", "-c", code], capture_output=True, text=True)
    if "seccomp" not in done.stdout:
        said = done.stderr.strip()[-200:] or "the kernel does not filter system calls"
        raise ParameterError("grader", "code", reason=f"this machine cannot confine programs ({said})")


def confine(memory_limit: int, *, max_file: int = 0, audit_hook: bool = True) -> list[str]:
    """Limit this process for good, in bytes of address space and of open files; return the barriers put up."""
    limit_size(memory_limit, max_file)
    sys.dont_write_bytecode = True
    barriers = ["seccomp"] if _filter_calls() else []
    if audit_hook:
        sys.addaudithook(_refuse)
        barriers.append("audit hook")
    return barriers


def limit_size(memory_limit: int, max_file: int = 2**40) -> None:
    """Limit this process and its children for good, in bytes of address space and of the files that they extend."""
    import resource

    limits = {resource.RLIMIT_AS: memory_limit, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: max_file}
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit on the address space
            resource.setrlimit(limit, (value, value))


def _filter(column: int, machine: int) -> bytes:
    """Return the filter of system calls: 8-byte instructions (operation, jump if true, jump if false, operand)."""

    def step(operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", operation, if_true, if_false, operand)

    refuse = step(_RETURN, _REFUSE)
    code = [step(_LOAD, 4), step(_EQUAL, machine, 1, 0), step(_RETURN, _KILL)]  # the numbers are of this machine
    code += [step(_LOAD, 0), step(_AT_LEAST, 0x40000000, 0, 1), refuse]  # x86-64's calls with short pointers
    code += [step(_EQUAL, _CLONE3, 0, 1), step(_RETURN, _MISSING)]
    for call in _REFUSED.split(","):
        number = call.split()[1 + column]
        if number != "-":
            code += [step(_EQUAL, int(number), 0, 1), refuse]
    for *numbers, argument, test, operand, refused in _DECIDED:
        if numbers[column] is not None:  # loads the lower half of the argument: both machines are little-endian
            code += [step(_EQUAL, numbers[column], 0, 4), step(_LOAD, 16 + 8 * argument)]
            code += [step(test, operand, int(not refused), int(refused)), refuse, step(_LOAD, 0)]
    return b"".join([*code, step(_RETURN, _ALLOW)])


_SUPPORTED = sys.platform == "linux" and platform.machine() in _MACHINES and sys.maxsize > 2**32
_CODE = _filter(*_MACHINES[platform.machine()]) if _SUPPORTED else b""  # made once, not in each program's process


def _filter_calls() -> bool:
    """Have the kernel refuse the calls above; return whether it does."""
    if not _SUPPORTED:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    one, zero, mode = (ctypes.c_ulong(number) for number in (1, 0, _FILTER_MODE))
    program = ctypes.byref(_FilterProgram(len(_CODE) // 8, _CODE))
    return (
        libc.prctl(_SET_NO_NEW_PRIVS, one, zero, zero, zero) == 0
        and libc.prctl(_SET_SECCOMP, mode, program, zero, zero) == 0
    )


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        refused = bool(writes or (isinstance(flags, int) and flags & _WRITING))
    else:
        refused = event.startswith(_EVENTS) and event not in _HARMLESS
    if refused:
        raise PermissionError(errno.EPERM, f"a grading worker may not do this: {event}")

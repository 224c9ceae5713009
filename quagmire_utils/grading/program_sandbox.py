"""What a program that a model wrote cannot do: it runs any code, native too, so its process is shut in by the kernel.

`confine_program` limits memory, processor time and open files, and puts up two barriers:

`seccomp` admits the system calls that Python and its libraries compute with, and no others (_ALLOWED), so one that is
not thought of here, or not invented yet, is refused. A program reads, writes to what was open before, allocates, sleeps
and starts threads. It starts no process, opens no socket, opens nothing for writing, and neither signals, renices, pins
nor limits a process, be it of another user or of its own.

`landlock` (Linux 5.13 and later) admits reading below the given folders alone. Where it is missing, `stop_opening` is
to be called before the program runs, and after that nothing can be opened at all.

Linux on x86-64 and aarch64. The workers, which run none of a model's programs, have `sandbox`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Sequence

from quagmire_utils.grading.sandbox import (
    _ALLOW,
    _ANY_BIT,
    _EQUAL,
    _KILL,
    _LOAD,
    _MACHINES,
    _RETURN,
    _WRITING,
    _install,
    _limit,
)

# System calls that are admitted whatever their arguments: name -> number on x86-64, on aarch64 (None: no such call).
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "lseek": (8, 62), "close": (3, 57),
    "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None),
    "pipe2": (293, 59), "eventfd2": (290, 19), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "stat": (4, None), "lstat": (6, None), "fstat": (5, 80),
    "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getdents": (78, None),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "umask": (95, 166),
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "madvise": (28, 233),
    "mincore": (27, 232), "brk": (12, 214), "membarrier": (324, 283), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "pause": (34, None),
    "alarm": (37, None), "getitimer": (36, 102), "setitimer": (38, 103), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "restart_syscall": (219, 128), "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "rseq": (334, 293), "set_tid_address": (218, 96), "arch_prctl": (158, None), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getpriority": (140, 141), "getrlimit": (97, 163),
    "setrlimit": (160, 164), "getrandom": (318, 278), "uname": (63, 160), "sysinfo": (99, 179), "getpid": (39, 172),
    "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "wait4": (61, 260), "waitid": (247, 95), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_FCNTL, _IOCTL, _PRCTL, _PRLIMIT, _CLONE = (72, 25), (16, 29), (157, 167), (302, 261), (56, 220)
_OPEN, _OPENAT = (2, None), (257, 56)
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # copies and flags of a handle; not F_SETOWN, which has others signalled
_IOCTL_COMMANDS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)  # is it a terminal, bytes to read, blocking, closing
_PRCTL_COMMANDS = (22, 38)  # a further filter, and giving up privileges: `stop_opening`
_CLONE_THREAD, _CLONE_NEW = 0x10000, 0x7E020080
_NO_SUCH_CALL = 0x00050000 | errno.ENOSYS  # the C library then does without, or with an older one

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_FILE_ACTIONS = (1 << 13) - 1  # all that the first version of Landlock knows
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def confine_program(memory_limit: int, processor_limit: float, readable: Sequence[str]) -> list[str]:
    """Shut this process in for good, before a program that a model wrote is run in it; the barriers that stand.

    `readable`: the folders and files that it may read. `processor_limit`: seconds, rounded up to the kernel's whole
    ones; who started the process stops it to the millisecond. Where "seccomp" is not among the barriers no such program
    must be run, and where "landlock" is not, none before `stop_opening` has returned True.
    """
    import resource

    _limit(
        {
            resource.RLIMIT_AS: memory_limit,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_CPU: int(processor_limit) + 2,
            resource.RLIMIT_NOFILE: 64,
        }
    )
    sys.dont_write_bytecode = True
    if sys.platform == "linux":  # if who watches over it is killed, so is the program
        zero = ctypes.c_ulong(0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), zero, zero, zero)
    barriers = ["landlock"] if _restrict_reading(readable) else []
    return [*barriers, "seccomp"] if _admit(_program_filter) else barriers


def stop_opening() -> bool:
    """Refuse this process to open anything from now on, for good; whether the kernel does."""
    return _admit(_closing_filter)


def _restrict_reading(readable: Sequence[str]) -> bool:
    """Allow reading below `readable`, and no other opening of a file; whether the kernel can."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    handled = struct.pack("=Q", _FILE_ACTIONS)
    rules = libc.syscall(_LANDLOCK_CREATE, handled, ctypes.c_size_t(len(handled)), ctypes.c_uint(0))
    if rules < 0:
        return False
    for place in readable:
        try:
            handle = os.open(place, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = _READ_FILE | _READ_FOLDER if os.path.isdir(place) else _READ_FILE
        libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", allowed, handle), ctypes.c_uint(0))
        os.close(handle)
    zero = ctypes.c_ulong(0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero)
    shut = libc.syscall(_LANDLOCK_RESTRICT, rules, ctypes.c_uint(0)) == 0
    os.close(rules)
    return shut


def _admit(make_filter: Callable[[int], bytes]) -> bool:
    if sys.platform != "linux" or platform.machine() not in _MACHINES or sys.maxsize < 2**32:
        return False
    column, machine = _MACHINES[platform.machine()]
    head = [_step(_LOAD, 4), _step(_EQUAL, machine, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, 0)]
    return _install(b"".join(head) + make_filter(column))


def _program_filter(column: int) -> bytes:
    allow, refuse = _step(_RETURN, _ALLOW), _step(_RETURN, _NO_SUCH_CALL)

    def where(number: int | None, argument: int, tests: Iterable[bytes]) -> list[bytes]:
        """For the call of that number: `tests` on the lower half of an argument (both machines are little-endian)."""
        block = [_step(_LOAD, 16 + 8 * argument), *tests]
        return [] if number is None else [_step(_EQUAL, number, 0, len(block)), *block]

    def among(values: Iterable[int]) -> list[bytes]:
        return [step for value in values for step in (_step(_EQUAL, value, 0, 1), allow)] + [refuse]

    not_writing = [_step(_ANY_BIT, _WRITING, 0, 1), refuse, allow]
    a_thread = [_step(_ANY_BIT, _CLONE_NEW, 0, 1), refuse, _step(_ANY_BIT, _CLONE_THREAD, 0, 1), allow, refuse]
    code = []
    for numbers in _ALLOWED.values():
        if numbers[column] is not None:
            code += [_step(_EQUAL, numbers[column], 0, 1), allow]
    code += where(_OPEN[column], 1, not_writing) + where(_OPENAT[column], 2, not_writing)
    code += where(_FCNTL[column], 1, among(_FCNTL_COMMANDS)) + where(_IOCTL[column], 1, among(_IOCTL_COMMANDS))
    code += where(_PRCTL[column], 0, among(_PRCTL_COMMANDS)) + where(_PRLIMIT[column], 0, among([0]))
    code += where(_CLONE[column], 0, a_thread)
    return b"".join([*code, refuse])  # also clone3, which hides its flags from a filter: glibc goes back to clone


def _closing_filter(column: int) -> bytes:
    numbers = [call[column] for call in (_OPEN, _OPENAT) if call[column] is not None]
    refuse = _step(_RETURN, 0x00050000 | errno.EACCES)
    return b"".join([step for n in numbers for step in (_step(_EQUAL, n, 0, 1), refuse)] + [_step(_RETURN, _ALLOW)])


def _step(operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """An instruction of the filter's machine."""
    return struct.pack("=HBBI", operation, if_true, if_false, operand)

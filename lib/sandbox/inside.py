"""What runs inside the sandbox: the tests in one process, the candidate in another, and nothing but two pipes between them.

The candidate is forked before a test has been read, so that neither a test nor the nonce is in its memory; it then lets go of
every other descriptor, lowers its limits and forbids itself processes, sockets, signals and mounts. A test calls a stand-in,
which sends the arguments and gets plain data back, so that no object of the candidate (an `__eq__` that always agrees) and no
end of its process takes part in a comparison. Standard library only: it is started as a script, without the packages.
"""

import builtins
import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

LONGEST = 1_000_000  # bytes of a message
KEPT = 200  # characters of a reason
X86_64 = 0xC000003E
NO_DUMP, NO_NEW_PRIVILEGES, FILTER = (4, 0), (38, 1), 22
# By number on x86-64: processes and programs; signals; other processes' memory and descriptors; sockets; mounts and
# namespaces; memory that no limit counts; the kernel's larger doors.
FORBIDDEN = [
    *(56, 57, 58, 435, 59, 322),
    *(62, 200, 234, 129, 297, 424, 434, 438),
    *(101, 310, 311, 312),
    *(41, 42, 49, 50, 53),
    *(155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442),
    *(29, 30, 31, 64, 68, 69, 240, 319, 447),
    *(246, 248, 249, 250, 298, 320, 321, 323, 425, 426, 427),
]


class NoAnswerError(Exception):
    """Why the candidate gives no answer."""


def main() -> None:
    """Read the candidate, start it, read the tests, run them, and write a result for each, with the tests' nonce."""
    candidate = _receive(0, time.monotonic() + 5)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(*NO_DUMP, 0, 0, 0)
    to_candidate, from_candidate = os.pipe(), os.pipe()
    if os.fork() == 0:
        _become_candidate(candidate["code"], candidate["limits"], to_candidate[0], from_candidate[1], libc)
    os.close(to_candidate[0])
    os.close(from_candidate[1])
    asked = _receive(0, time.monotonic() + 5)
    results = _run(asked["tests"], to_candidate[1], from_candidate[0], time.monotonic() + candidate["limits"]["seconds"])
    _send(1, {"nonce": asked["nonce"], "results": results})


def _run(tests: list[str], to: int, back: int, until: float) -> list[str]:
    """For each test an empty string where it holds, else why it does not."""
    gone = ""

    def call(name: str, *arguments: Any, **named: Any) -> Any:
        nonlocal gone
        if gone:
            raise NoAnswerError(gone)
        try:
            _send(to, {"name": name, "arguments": plain(list(arguments)), "named": plain(named)})
            answer = _answer(back, until)
        except NoAnswerError as ended:
            gone = str(ended)
            raise
        if "raised" in answer:
            raise NoAnswerError(str(answer["raised"])[:KEPT])
        return restored(answer["value"])

    try:
        begun = _answer(back, until)
        gone = str(begun.get("raised", ""))[:KEPT]
        # A candidate's own `sorted` or `set` must not judge its answers.
        names = [str(name) for name in begun.get("names", ()) if not hasattr(builtins, str(name))]
        known = {name: _stand_in(call, name) for name in names if name.isidentifier() and not name.startswith("__")}
    except NoAnswerError as ended:
        gone, known = str(ended), {}
    return [gone or _holds(test, known) for test in tests]


def _stand_in(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda *arguments, **named: call(name, *arguments, **named)


def _holds(test: str, known: dict[str, Any]) -> str:
    try:
        exec(compile(test, "test", "exec"), dict(known))
    except AssertionError:
        return "a test fails"
    except NoAnswerError as ended:
        return str(ended)
    except BaseException as error:
        return f"the test raises {type(error).__name__}"[:KEPT]
    return ""


def _answer(back: int, until: float) -> dict[str, Any]:
    try:
        found = _receive(back, until)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoAnswerError("its answer cannot be read")
    return found


def _become_candidate(code: str, limits: dict[str, Any], asked: int, answered: int, libc: Any) -> NoReturn:
    """The candidate's process: shut in, then its code, then a call at a time until the pipe closes."""
    os.chdir("/tmp")
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    low, high = sorted((asked, answered))
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, 1024)
    for name, value in limits["resources"].items():
        # A second later the kernel kills who caught the signal.
        resource.setrlimit(getattr(resource, name), (value, value + (name == "RLIMIT_CPU")))
    _forbid(libc)
    namespace: dict[str, Any] = {"__name__": "candidate"}
    begun = _tried(lambda: exec(compile(code, "candidate", "exec"), namespace))
    names = [name for name, value in namespace.items() if callable(value) and not name.startswith("__")]
    _reply(answered, begun if "raised" in begun else {"names": names})
    while True:
        call = _receive(asked, time.monotonic() + limits["seconds"])
        arguments, named = restored(call["arguments"]), restored(call["named"])
        _reply(answered, _tried(lambda c=call, a=arguments, n=named: plain(namespace[c["name"]](*a, **n))))


def _tried(step: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": step()}
    except BaseException as error:
        return {"raised": f"raises {type(error).__name__}"[:KEPT]}


def _reply(answered: int, answer: dict[str, Any]) -> None:
    try:
        _send(answered, answer)
    except (ValueError, TypeError, RecursionError, MemoryError):
        _send(answered, {"raised": "its answer is too large"})


def _forbid(libc: Any) -> None:
    """A seccomp filter for this process: forbidden calls fail with EPERM; where none can be set, nothing is run."""
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    refused, allowed, killed = 0x00050001, 0x7FFF0000, 0x80000000
    steps = [(load, 0, 0, 4), (equal, 1, 0, X86_64), (end, 0, 0, killed)]
    steps += [(load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (end, 0, 0, refused)]
    for number in FORBIDDEN:
        steps += [(equal, 0, 1, number), (end, 0, 0, refused)]
    program = b"".join(struct.pack("HBBI", *step) for step in [*steps, (end, 0, 0, allowed)])
    held = ctypes.create_string_buffer(program)
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held))
    if libc.prctl(*NO_NEW_PRIVILEGES, 0, 0, 0) or libc.prctl(FILTER, 2, ctypes.c_char_p(described), 0, 0):
        os._exit(97)


def plain(value: Any) -> Any:
    """A value as JSON that keeps tuples, sets, bytes and complex numbers; TypeError for anything that is no plain data."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [plain(part) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[plain(key), plain(part)] for key, part in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"{type(value).__name__} is no plain data")


def restored(sent: Any) -> Any:
    """The value that `plain` wrote; ValueError for what it never writes."""
    if not isinstance(sent, (dict, list)):
        return sent
    if not isinstance(sent, dict) or len(sent) != 1:
        raise ValueError("no plain data")
    ((kind, held),) = sent.items()
    if kind in ("list", "tuple", "set", "frozenset"):
        return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](map(restored, held))
    if kind == "dict":
        return {restored(key): restored(part) for key, part in held}
    if kind in ("bytes", "complex"):
        return bytes.fromhex(held) if kind == "bytes" else complex(*held)
    raise ValueError("no plain data")


def _send(descriptor: int, message: dict[str, Any]) -> None:
    """Write a message: its length in four bytes, then JSON; ValueError above LONGEST."""
    text = json.dumps(message).encode()
    if len(text) > LONGEST:
        raise ValueError("too long")
    sent = struct.pack(">I", len(text)) + text
    while sent:
        try:
            sent = sent[os.write(descriptor, sent) :]
        except OSError as error:
            raise NoAnswerError("ends by itself") from error


def _receive(descriptor: int, until: float) -> Any:
    """Read one message, never a byte of the next; NoAnswerError when none comes in time, the pipe closes or it is too long."""
    size = struct.unpack(">I", _read(descriptor, 4, until))[0]
    if size > LONGEST:
        raise NoAnswerError("its answer is too large")
    return json.loads(_read(descriptor, size, until))


def _read(descriptor: int, size: int, until: float) -> bytes:
    found = b""
    while len(found) < size:
        if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            raise NoAnswerError("time limit")
        part = os.read(descriptor, size - len(found))
        if not part:
            raise NoAnswerError(_how_it_ended())
        found += part
    return found


def _how_it_ended() -> str:
    found, status, until = 0, 0, time.monotonic() + 0.2  # the pipe closes a moment before its process ends
    while not found and time.monotonic() < until:
        found, status = os.waitpid(-1, os.WNOHANG)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        at_limit = number in (signal.SIGXCPU, signal.SIGKILL)
        return "time limit" if at_limit else f"killed by {signal.Signals(number).name}"
    return "no seccomp filter can be set" if os.WEXITSTATUS(status) == 97 else "ends by itself"


if __name__ == "__main__":
    main()
    sys.exit()

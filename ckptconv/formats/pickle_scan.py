"""Walk a pickle's opcodes without executing them, and refuse a pickle that asks for more memory than its size explains.

The C unpickler trusts the lengths in a pickle: seven bytes can ask for a memo of 64 GiB. So this module checks lengths,
memo indices and the width of numbers before anything is loaded. Opcodes: CPython's Lib/pickletools.py, protocols 0 to 5.
"""

from __future__ import annotations

import re

from ckptconv.errors import CkptconvError, Kind

_WIDEST = 255  # bytes of a number; torch writes at most 8, and a random state has 16
_LONGEST = 1000  # characters of a number that is written as text

_STOP, _TEXT, _LONG, _SHORT = b".X\x8a\x8c"
_TUPLES = b"t\x85\x86\x87\x91"  # tuples and frozen sets nest, and their hash is that of their items
# Opcode -> the bytes of its argument.
_FIXED = {
    **dict.fromkeys(b"(.012NR)l]aed}sutbotQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98", 0),
    **dict.fromkeys(b"Khq\x80\x82", 1),
    **dict.fromkeys(b"M\x83", 2),
    **dict.fromkeys(b"Jjr\x84", 4),
    **dict.fromkeys(b"G\x95", 8),
}
# Opcode -> the bytes of the length before its argument. A negative signed length is read as a length that is too large.
_COUNTED = {
    **dict.fromkeys(b"UC\x8c\x8a", 1),
    **dict.fromkeys(b"TBX\x8b", 4),
    **dict.fromkeys(b"\x8d\x8e\x96", 8),
}
_NUMBERS = frozenset(b"\x8a\x8b")
_LINES = {**dict.fromkeys(b"FILSVPgp", 1), **dict.fromkeys(b"ci", 2)}
_TEXT_NUMBERS = frozenset(b"FILgp")
_LONG_PUT, _TEXT_PUT = b"rp"
# The length of every opcode that needs no further check; 0 for the others. Most opcodes of a pickle need none.
_LENGTHS = bytes(1 + _FIXED[op] if op in _FIXED and op not in (_STOP, _LONG_PUT) else 0 for op in range(256))


def _run() -> re.Pattern[bytes]:
    """Return what matches such opcodes, and numbers of up to 8 bytes, in a row. Its bounds limit the memory of a match."""
    numbers = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(1, 9))
    kinds = [re.escape(bytes([_LONG])) + b"(?:" + numbers + b")"]
    for length in sorted(set(_LENGTHS) - {0}):
        ops = b"".join(re.escape(bytes([op])) for op in range(256) if _LENGTHS[op] == length)
        kinds.append(b"[" + ops + b"]" + (b"{1,256}" if length == 1 else b".{%d}" % (length - 1)))
    return re.compile(b"(?:" + b"|".join(kinds) + b"){1,256}", re.DOTALL)


_RUN = _run()


def check_pickle(data: bytes) -> None:
    """Check every opcode up to STOP.

    Raises:
        CkptconvError: an opcode does not exist, the pickle is cut off, or it asks for too much memory.
    """
    at, end, lengths, run = 0, len(data), _LENGTHS, _RUN.match
    while at < end:
        if found := run(data, at):
            at = found.end()
            if at >= end:
                break
        op = data[at]
        length = lengths[op]
        if length:  # its argument is cut off, or the run was longer than one match
            at += length
        elif op == _SHORT and at + 1 < end:  # texts end most runs, so they are looked at here
            at += 2 + data[at + 1]
        elif op == _TEXT and at + 4 < end:
            at += 5 + (data[at + 1] | data[at + 2] << 8 | data[at + 3] << 16 | data[at + 4] << 24)
        elif op == _LONG and at + 1 < end:  # of at most 255 bytes
            at += 2 + data[at + 1]
        elif op == _STOP:
            return
        else:
            at = _past(data, at)
    raise CkptconvError("a pickle is cut off", found=f"{end:,} bytes", kind=Kind.DAMAGED)


def tuples_in(data: bytes) -> int:
    """Return an upper bound for the depth to which a pickle nests tuples."""
    return sum(data.count(bytes([op])) for op in _TUPLES)


def _past(data: bytes, at: int) -> int:
    op = data[at]
    if op in _COUNTED:
        return _past_counted(data, at)
    if op in _LINES:
        return _past_lines(data, at)
    if op != _LONG_PUT:
        raise CkptconvError("a pickle has an opcode that does not exist", found=hex(op), kind=Kind.DAMAGED)
    _check_place(int.from_bytes(data[at + 1 : at + 5], "little"), at)
    return at + 5


def _past_counted(data: bytes, at: int) -> int:
    """Return the end of an opcode whose argument is a text, bytes or a number with a length."""
    begin = at + 1 + _COUNTED[data[at]]
    size = int.from_bytes(data[at + 1 : begin], "little")
    if size > len(data) - begin:
        raise CkptconvError(
            "a pickle is cut off, or asks for more bytes than it has",
            found=f"{size:,} bytes",
            kind=Kind.DAMAGED,
        )
    if data[at] in _NUMBERS and size > _WIDEST:
        raise CkptconvError(
            "a pickle holds a number that is too wide", found=f"{size:,} bytes", kind=Kind.DAMAGED
        )
    return begin + size


def _past_lines(data: bytes, at: int) -> int:
    """Return the end of an opcode whose argument is one or two lines of text."""
    stop = at
    for _ in range(_LINES[data[at]]):
        stop = data.find(b"\n", stop + 1)
        if stop < 0:
            raise CkptconvError("a pickle is cut off", found=f"{len(data):,} bytes", kind=Kind.DAMAGED)
    if data[at] in _TEXT_NUMBERS and stop - at > _LONGEST:
        raise CkptconvError(
            "a pickle holds a number that is too wide", found=f"{stop - at:,} digits", kind=Kind.DAMAGED
        )
    if data[at] == _TEXT_PUT:
        try:
            _check_place(int(data[at + 1 : stop]), at)
        except ValueError as error:
            raise CkptconvError("invalid memo index in a pickle: not a number", kind=Kind.DAMAGED) from error
    return stop + 1


def _check_place(place: int, at: int) -> None:
    """Picklers number memo places from 0, and each place takes at least one byte of opcodes, so no index exceeds `at`."""
    if place > at:
        raise CkptconvError("invalid memo index in a pickle: out of range", found=place, kind=Kind.DAMAGED)

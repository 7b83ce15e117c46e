"""Small pickles that cost much: memory, time or the process itself. Each would, without what refuses it."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.torch_files import name, numbers, rebuilt, storage, text, torch_file

from ckptconv.errors import CkptconvError, brief
from ckptconv.formats.pickle_scan import check_pickle
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.formats.unpickle import safe_load

MANY = 200_000
GET, TWICE = b"h\x00", b"h\x00h\x00"


def again(what: bytes, function: bytes, count: int = 2_000) -> bytes:
    """One large thing, given to a function two thousand times."""
    return what + b"q\x000" + function + b"q\x010](" + (b"h\x01" + GET + b"\x85R") * count + b"e"


LARGE_LIST, LARGE_TUPLE = b"](" + b"N" * MANY + b"e", b"(" + b"N" * MANY + b"t"
LARGE_DICT = b"}(" + b"".join(text(str(n)) + b"N" for n in range(65_000)) + b"u"
FOLDED = b"]q\x00" + b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(40))

COSTS: dict[str, bytes] = {
    "a memo of 64 GiB": b"Nr\xff\xff\xff\xff",
    "a memo of 3 GiB": b"Nr" + struct.pack("<I", 200_000_000),
    "a memo of 3 GiB, in text": b"Np200000000\n",
    "sizes of a list, again and again": again(LARGE_LIST, name("torch", "Size")),
    "dicts of a list, again and again": again(b"](" + b"](NNe" * 100_000 + b"e", name("collections", "OrderedDict")),
    "arguments of a class, again and again": LARGE_TUPLE + b"q\x000" + name("a", "B") + b"q\x010]("
    + b"h\x01h\x00\x81" * 2_000 + b"e",
    "arguments of a call, again and again": LARGE_TUPLE + b"q\x000" + name("torch", "Size") + b"q\x010]("
    + b"h\x01h\x00R" * 2_000 + b"e",
    "words of a class": LARGE_DICT + b"q\x000" + name("a", "B") + b"q\x010](" + b"h\x01)h\x00\x92" * 2_000 + b"e",
    "fields of a tensor, again and again": LARGE_DICT + b"q\x000"
    + name("torch._utils", "_rebuild_wrapper_subclass") + b"q\x010"
    + name("torch._tensor", "_rebuild_from_type_v2") + b"q\x020](" + b"h\x02(h\x01N)h\x00tR" * 2_000 + b"e",
    "a shape of a million dims": rebuilt(storage(), b"K\x00", LARGE_TUPLE, LARGE_TUPLE),
    "a class's name that grows": text("a" * 900) + b"q\x000" + name("builtins", "getattr") + b"q\x010" + name("a", "B")
    + b"q\x02" + b"0h\x01h\x02h\x00\x86Rq\x02" * 4_000,
    "a class whose kind unfolds": FOLDED + b"q\x640" + name("torch._tensor", "_rebuild_from_type_v2") + b"("
    + name("torch._utils", "_rebuild_wrapper_subclass") + b"h\x64)}tRQ",
}  # fmt: skip


def in_a_process(cases: list[bytes], tmp_path: Path, seconds: int = 60) -> tuple[list[str], int]:
    """What became of each, in a process of its own without any limit; and the process's largest size in MiB."""
    for number, case in enumerate(cases):
        (tmp_path / str(number)).write_bytes(case)
    code = (
        "import pathlib, sys\n"
        "from ckptconv.formats.unpickle import safe_load\n"
        "from ckptconv.errors import CkptconvError\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir(), key=lambda path: int(path.name)):\n"
        "    try:\n"
        "        print('loaded', type(safe_load(path.read_bytes(), 'x')).__name__)\n"
        "    except CkptconvError as error:\n"
        "        print('refused', error.what)\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "print(int(status.read_text().split('VmHWM:')[1].split()[0]) >> 10 if status.exists() else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, f"{done.returncode} {done.stderr}"
    *said, peak = done.stdout.splitlines()
    return said, int(peak)


def test_what_costs_much_is_refused_before_it_does(tmp_path: Path) -> None:
    said, peak = in_a_process([b"\x80\x02" + case + b"." for case in COSTS.values()], tmp_path)
    assert len(said) == len(COSTS)
    assert [case for case, what in zip(COSTS, said, strict=True) if not what.startswith("refused")] == []
    assert peak < 200


def test_tuples_in_tuples_do_not_end_the_process_when_they_are_hashed(tmp_path: Path) -> None:
    """A million deep: hashing it recurses in C, where nothing counts how deep."""
    depth = 1_000_000
    deep = b"\x80\x02}" + b"(" * depth + b"t" * depth + b"Ns."
    singles = b"\x80\x02}N" + b"\x85" * depth + b"Ns."
    said, _ = in_a_process([deep, singles], tmp_path)
    assert said == ["loaded dict", "loaded dict"]


def test_a_large_pickle_of_many_tuples_is_read_as_any_other() -> None:
    value = {(n, (n, str(n))): [n] for n in range(3_000)}
    assert safe_load(pickle.dumps(value, 2), "x") == value


def test_an_error_in_a_large_pickle_is_the_same_error() -> None:
    made = (
        b"\x80\x02]("
        + b"N\x85" * 5_000
        + b"e"
        + rebuilt(text("storage"), b"K\x00", numbers(1), numbers(1))
        + b"."
    )
    with pytest.raises(CkptconvError, match="not made of a storage"):
        safe_load(made, "x")


@pytest.mark.parametrize("protocol", range(6))
def test_the_walk_knows_every_opcode_that_python_writes(protocol: int) -> None:
    value = {
        "x": (1, 300, 70_000, 1 << 40, -1, 1 << 900, 2.5, None, True), b"y": [set(), frozenset([1]), bytearray(b"z")],
        "é" * 300: b"b" * 300, "long": "x" * 70_000, "again": [()] * 300, "class": pytest.MonkeyPatch,
    }  # fmt: skip
    data = pickle.dumps(value, protocol)
    check_pickle(data)
    for end in (*range(0, 400, 7), len(data) - 1):
        with pytest.raises(CkptconvError, match="a pickle is cut off"):
            check_pickle(data[:end])


def test_the_memo_of_a_large_pickle_is_not_taken_for_a_bomb() -> None:
    value = [str(n) for n in range(70_000)]
    for protocol in (0, 1, 2, 4):
        assert safe_load(pickle.dumps(value, protocol), "x") == value


@pytest.mark.parametrize("make", [list, tuple])
def test_an_error_shows_a_little_of_what_folds_up_or_is_long(make: Callable[..., object]) -> None:
    folded: object = make()
    for _ in range(60):
        folded = make((folded, folded))
    for value in (folded, make(range(10**6)), 10**5000, "x" * 10**6, {1: folded}):
        assert len(brief(value)) < 5_000
        assert len(str(CkptconvError("x", where=value, found=value, wanted=value))) < 15_000


def test_a_tensor_of_exabytes_from_four_bytes_is_a_bomb(tmp_path: Path) -> None:
    """With strides of 0; a thousand elements of one are how torch keeps an expanded buffer."""
    for size, fits in ((1_000, True), (1 << 27, True), (1 << 40, False), (1 << 62, False)):
        made = rebuilt(storage(), b"K\x00", numbers(size), numbers(0))
        file = open_torch_zip(str(torch_file(tmp_path / "x.pt", b"\x80\x02" + made + b".")))
        if fits:
            assert file.view(file.root).shape == (size,)
        else:
            with pytest.raises(CkptconvError, match="far larger than its storage"):
                file.view(file.root)

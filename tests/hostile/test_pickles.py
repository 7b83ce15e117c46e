"""Malformed, huge and strange pickles: refused, or read without harm."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.torch_files import (
    assert_unharmed,
    call,
    name,
    numbers,
    rebuilt,
    refusal,
    storage,
    text,
    torch_file,
    view_of_root,
)

from ckptconv.errors import CkptconvError
from ckptconv.formats.torch_zip import open_torch_zip
from ckptconv.formats.unpickle import safe_load

OUTSIDE: dict[str, tuple[bytes, str]] = {
    "one element too many": (rebuilt(storage(), b"K\x01", numbers(12), numbers(1)), "reaches outside"),
    "a wide stride": (rebuilt(storage(), b"K\x00", numbers(2, 2), numbers(11, 1)), "reaches outside"),
    "a far offset": (
        rebuilt(storage(), b"\x8a\x08" + b"\x7f" * 8, numbers(1), numbers(1)),
        "reaches outside",
    ),
    "a scalar past the end": (rebuilt(storage(), b"K\x0c", b")", b")"), "reaches outside"),
    "a wider dtype": (
        rebuilt(storage(kind="DoubleStorage"), b"K\x00", numbers(12), numbers(1)),
        "reaches outside",
    ),
    "a storage that is not there": (
        rebuilt(storage("../1"), b"K\x00", numbers(1), numbers(1)),
        "not in the file",
    ),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_tensor_outside_its_storage_is_refused(case: str, tmp_path: Path) -> None:
    made, words = OUTSIDE[case]
    file = open_torch_zip(str(torch_file(tmp_path / "x.pt", b"\x80\x02" + made + b".")))
    with pytest.raises(CkptconvError, match=words):
        file.view(file.root)


def test_a_tensor_with_more_sizes_than_strides_is_refused(tmp_path: Path) -> None:
    made = rebuilt(storage(), b"K\x00", numbers(2, 3), numbers(1))
    path = torch_file(tmp_path / "x.pt", b"\x80\x02" + made + b".")
    with pytest.raises(CkptconvError, match="different numbers of strides and dims"):
        view_of_root(open_torch_zip(str(path)))


REBUILD, FROM_TYPE = (
    name("torch._utils", "_rebuild_tensor_v2"),
    name("torch._tensor", "_rebuild_from_type_v2"),
)
STATE = b"}" + text("kind") + text("DTensor") + b"s"
MALFORMED: dict[str, bytes] = {
    "persistent id: None": b"NQ",
    "persistent id: text": text("storage") + b"Q",
    "persistent id: protocol 0": b"Pstorage\n",
    "persistent id: too short": b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + b"tQ",
    "persistent id: another kind": storage().replace(b"storage(", b"module(").replace(text("storage"), text("x")),
    "persistent id: no dtype": storage(kind="Tensor"),
    "persistent id: a negative count": storage(numel=b"J\xff\xff\xff\xff"),
    "persistent id: a count that is true": storage(numel=b"\x88"),
    "persistent id: a key that is a number": storage().replace(text("0"), b"K\x00"),
    "tensor: no storage": rebuilt(text("storage"), b"K\x00", numbers(1), numbers(1)),
    "tensor: a negative size": rebuilt(storage(), b"K\x00", numbers(-1), numbers(1)),
    "tensor: a negative stride": rebuilt(storage(), b"K\x00", numbers(2), numbers(-1)),
    "tensor: a negative offset": rebuilt(storage(), b"J\xff\xff\xff\xff", numbers(2), numbers(1)),
    "tensor: a size that is true": rebuilt(storage(), b"K\x00", b"\x88\x85", numbers(1)),
    "tensor: a size of 2.5": rebuilt(storage(), b"K\x00", b"G@\x04\x00\x00\x00\x00\x00\x00\x85", numbers(1)),
    "tensor: no shape": rebuilt(storage(), b"K\x00", b"N", numbers(1)),
    "tensor: too few arguments": rebuilt(storage()),
    "build on a function": REBUILD + b"}" + text("_function") + b"Nsb",
    "build with slots on a function": REBUILD + b"N}" + text("_function") + b"Ns\x86b",
    "build on a class": name("torch", "Tensor") + STATE + b"b",
    "build on an unknown class": name("some.where", "Thing") + STATE + b"b",
    "build with slots on a class": name("torch", "Tensor") + b"N" + STATE + b"\x86b",
    "build on the dict class": name("collections", "OrderedDict") + STATE + b"b",
    "build on a dtype": name("torch", "float32") + b"}" + text("name") + text("int8") + b"sb",
    "build with slots on a dtype": name("torch", "float32") + b"N}" + text("name") + text("int8") + b"s\x86b",
    "build on a storage": storage() + b"N}" + text("key") + text("1") + b"s\x86b",
    "build on a tensor": rebuilt(storage(), b"K\x00", numbers(1), numbers(1)) + STATE + b"b",
    "setitem on a class": name("torch", "Tensor") + text("kind") + text("DTensor") + b"s",
    "setitem on a function": REBUILD + text("_function") + b"Ns",
    "append to a function": REBUILD + b"Na",
    "a call of a dtype": call(name("torch", "float32"), text("x")),
    "a call of a text": text("print") + b")R",
    "a new object of a function": REBUILD + b")\x81",
    "a new object of a text": text("print") + b")\x81",
    "a call of itself with itself": b"]q\x00(" + FROM_TYPE + b"Nh\x00Ne" + call(FROM_TYPE, FROM_TYPE, b"Nh\x00N"),
    "memo: never written": b"h\x07",
    "memo: never written, long": b"j\x07\x00\x00\x00",
    "memo: a negative number": b"g-1\n",
    "memo: a negative place": b"Np-1\n",
    "memo: no number": b"gx\n",
    "stack: nothing": b"",
    "stack: no mark": b"t",
    "stack: pop of nothing": b"00",
    "protocol 5: a buffer that is elsewhere": b"\x97",
    "protocol 5: a buffer made read-only": b"\x97\x98",
    "protocol 4: a frame longer than the file": b"\x95\xff\xff\x00\x00\x00\x00\x00\x00N",
    "protocol 4: a name that is no text": b"K\x01K\x02\x93",
    "protocol 255": b"\x80\xff",
    "an unknown opcode": b"\xff",
    "an extension that nobody registered": b"\x82\xf0",
    "an extension number below one": b"\x84\x00\x00\x00\x00",
    "a key that cannot be one": b"}]Ns",
    "a number of 256 bytes": b"\x8b" + struct.pack("<i", 256) + b"\x01" * 256,
    "a number of negative bytes": b"\x8b\xff\xff\xff\xff",
    "a number of a thousand digits": b"L1" + b"0" * 1000 + b"L\n",
    "a very long name": text("a." * 5000) + text("b" * 5000) + b"\x93",
    "names that grow": text("a") + b"".join(
        b"q" + bytes([i]) + b"0" + call(name("builtins", "getattr"), b"h" + bytes([i]), text("b" * 400)) for i in range(4)
    ),
    "text that is no text": b"X\x02\x00\x00\x00\xff\xfe",
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_pickle_is_refused(case: str, tmp_path: Path) -> None:
    refusal(torch_file(tmp_path / "x.pt", b"\x80\x02" + MALFORMED[case] + b"."))
    assert_unharmed(tmp_path)


def test_a_pickle_without_an_end_is_refused(tmp_path: Path) -> None:
    refusal(torch_file(tmp_path / "x.pt", b"\x80\x02N"))
    refusal(torch_file(tmp_path / "x.pt", b""))


HUGE = {
    "bytes of four exabytes": b"\x8e" + struct.pack("<Q", 1 << 62),
    "bytes of a terabyte": b"\x8e" + struct.pack("<Q", 1 << 40),
    "bytes of four gigabytes": b"B\xff\xff\xff\xff",
    "text of a terabyte": b"\x8d" + struct.pack("<Q", 1 << 40),
    "a bytearray of a terabyte": b"\x96" + struct.pack("<Q", 1 << 40),
    "a number of two gigabytes": b"\x8b\xff\xff\xff\x7f",
    "a place in the memo": b"Nr\xff\xff\xff\xff",
    "a place in the memo, as text": b"Np99999999999\n",
}


def test_huge_sizes_are_refused_within_two_gigabytes() -> None:
    """In a process of its own, whose address space is bounded: what is refused must not be allocated."""
    code = (
        "import ast, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from ckptconv.formats.unpickle import safe_load\n"
        "from ckptconv.errors import CkptconvError\n"
        "for case in ast.literal_eval(sys.argv[1]):\n"
        "    try:\n"
        "        safe_load(case, 'x')\n"
        "        print('loaded')\n"
        "    except CkptconvError as error:\n"
        "        print('refused')\n"
    )
    cases = [b"\x80\x05" + case + b"." for case in HUGE.values()]
    done = subprocess.run([sys.executable, "-c", code, repr(cases)], capture_output=True, text=True)
    assert done.stdout.split() == ["refused"] * len(HUGE), done.stderr


STRANGE: dict[str, bytes] = {
    "lists, a hundred thousand deep": b"]" * 100_000 + b"a" * 99_999,
    "tuples, a hundred thousand deep": b"(" * 100_000 + b"t" * 100_000,
    "a list in itself": b"]q\x00h\x00a",
    "a dict in itself": b"}q\x00" + text("x") + b"h\x00s",
    "a bytearray": b"\x96" + struct.pack("<Q", 3) + b"abc",
    "bytes": b"\x8e" + struct.pack("<Q", 3) + b"abc",
    "sets": b"\x8f(K\x01K\x02\x90(K\x01\x91\x86",
    "a number of 255 bytes": b"\x8b" + struct.pack("<i", 255) + b"\x01" * 255,
    "a class that is nowhere": call(name("no.such.module", "Thing.inner"), b"N") + b"}b",
    "a class with slots": name("a", "B") + b")\x81N}" + text("__class__") + b"Ns\x86b",
    "a class with keywords": name("a", "B") + b")}" + text("x") + b"Ns\x92",
    "a state that replaces its own loader": name("a", "B")
    + b")\x81}"
    + text("__setstate__")
    + REBUILD
    + b"sb}b",
    "a dict with attributes": name("collections", "OrderedDict") + b")R}" + text("update") + b"Nsb",
    "an attribute of a function": call(name("builtins", "getattr"), REBUILD, text("__globals__")),
    "an attribute of a class": call(name("builtins", "getattr"), name("a", "B"), text("__subclasses__"))
    + b")R",
    "a name with a newline": text("a\nb") + text("c\0d") + b"\x93",
    "a long name": text("a." * 250) + text("b" * 499) + b"\x93",
    "a module that does something when imported": name("this", "s") + name("antigravity", "fly") + b"\x86",
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_strange_pickle_is_inert(case: str, tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pt", b"\x80\x05" + STRANGE[case] + b".")
    before = set(sys.modules)
    open_torch_zip(str(path))
    assert set(sys.modules) == before
    assert_unharmed(tmp_path)


def test_an_error_text_does_not_unfold_what_a_pickle_folded() -> None:
    """A list of two lists of two lists ...: 100 bytes of pickle, and 2^18 of them when it is written out."""
    folded = b"]q\x00" + b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(18))
    made = safe_load(b"\x80\x02" + call(name("builtins", "getattr"), folded, text("x")) + b".", "x")
    assert len(made.kind) < 1000

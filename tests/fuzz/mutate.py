"""Inputs from inputs: bytes anyhow, and pickles, zips, safetensors and JSON by their own structure."""

from __future__ import annotations

import json
import pickletools
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

Mutate = Callable[[bytes, Random], bytes]
_NUMBERS = (0, 1, 2, 7, 8, 63, 64, 65, 127, 128, 255, 256, 1 << 15, (1 << 16) - 1, 1 << 20, (1 << 31) - 1, 1 << 31,
            (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 80)  # fmt: skip


def anyhow(data: bytes, random: Random) -> bytes:
    """Flipped, cut, doubled, overwritten bytes."""
    raw = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(raw) + 1)
        length = random.choice((1, 1, 2, 4, 8, 40))
        match random.randrange(7):
            case 0:
                raw[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                del raw[at : at + length]
            case 2:
                raw[at:at] = random.randbytes(length)
            case 3:
                raw[at:at] = raw[at : at + length] * random.choice((1, 2, 50))
            case 4:
                raw[at : at + length] = _number(random, length)
            case 5:
                source = random.randrange(len(raw) + 1)
                raw[at : at + length] = raw[source : source + length]
            case _:
                if at < len(raw):
                    raw[at] ^= 1 << random.randrange(8)
    if random.random() < 0.03:
        del raw[random.randrange(len(raw) + 1) :]
    return bytes(raw)


def _number(random: Random, length: int) -> bytes:
    value = random.choice(_NUMBERS)
    return (value & ((1 << 8 * length) - 1)).to_bytes(length, random.choice(("little", "big")))


# --- pickles


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


VALUES = (
    *(b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"K\x00", b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\xff"),
    *(b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x09" + b"\x00" * 8 + b"\x01", b"\x8a\x20" + b"\x7f" * 32, b"\x8a\x00"),
    *(b"G" + struct.pack(">d", value) for value in (0.5, -1.0, float("inf"), float("nan"), 1e308)),
    *(_text(value) for value in ("", "0", "x", "../x", "a\x1b[31mb", "a\nb", "é", "0" * 300, "layers.0.x", "\x00")),
    b"C\x03abc",
    *(b"K\x01\x85", b"K\x01K\x02\x86", b"(K\x01K\x02K\x03K\x04t", b"](K\x01K\x02e", b"}" + _text("a") + b"K\x01s"),
    *(_global(*name) for name in (
        ("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("torch", "Size"), ("torch", "float32"),
        ("torch", "FloatStorage"), ("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), ("a", "B"),
        ("torch.distributed.tensor.placement_types", "Shard"), ("torch._tensor", "_rebuild_from_type_v2"),
    )),
    _global("os", "system") + b"(" + _text("touch /tmp/ckptconv-fuzz-ran") + b"tR",
    _global("builtins", "exec") + b"(" + _text("raise SystemExit(77)") + b"tR",
    _global("torch", "Size") + b"](K\x02K\x03e\x85R",
    _global("a", "B") + b")\x81}" + _text("x") + b"K\x01sb",
)  # fmt: skip
_STEPS = (
    *(b"0", b"1", b"2", b"(", b"t", b"l", b"d", b"R", b"b", b"a", b"e", b"s", b"u", b"o", b"Q", b"\x81", b"\x85", b"\x86"),
    *(b"\x87", b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"\x97", b"\x98", b".", b"\x82\x01", b"h\x00", b"q\x01"),
    *(b"j\x05\x00\x00\x00", b"r\xff\xff\xff\xff", b"r\xff\xff\xff\x00", b"\x95" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f"),
    *(b"\x8d\xff\xff\xff\xff\x00\x00\x00\x00", b"\x96\xff\xff\xff\xff\x01\x00\x00\x00", b"\x80\x05", b"I9999\n", b"g1\n"),
    *(b"p99999999\n", b"P0\n", b"ios\nsystem\n", b"(" * 2000, b"\x85" * 2000, b"]" * 500 + b"a" * 499),
)  # fmt: skip


@lru_cache(maxsize=512)
def opcodes(data: bytes) -> tuple[bytes, ...]:
    """A pickle cut into its opcodes."""
    starts = [at for _, _, at in pickletools.genops(data)]
    return tuple(data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True))


_PUSHES = frozenset(b"NKMJG\x88\x89)]}XU\x8c\x8a\x8bChjVISLF")


def pickled(data: bytes, random: Random) -> bytes:
    """Opcodes exchanged, left out, doubled, moved; values of another type or size in place of others."""
    if random.random() < 0.1:
        return anyhow(data, random)
    ops = list(opcodes(data))
    pushes = [i for i, op in enumerate(ops) if op[0] in _PUSHES]
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(ops))
        match random.randrange(9):
            case 0 | 1 | 2 if pushes:
                at = random.choice(pushes)
                if at < len(ops):
                    ops[at] = random.choice(VALUES)
            case 3 if pushes:
                at, other = random.choice(pushes), random.choice(pushes)
                if max(at, other) < len(ops):
                    ops[at] = ops[other]
            case 4:
                del ops[at]
                ops = ops or [b"."]
            case 5:
                ops.insert(at, random.choice(_STEPS))
            case 6:
                ops.insert(at, random.choice(VALUES))
            case 7:
                other = random.randrange(len(ops))
                length = random.choice((1, 2, 5, 20))
                ops[at:at] = ops[other : other + length]
            case _:
                ops[at] = anyhow(ops[at], random)
    return b"".join(ops)


# --- zips


class Entry(NamedTuple):
    name: str
    data: bytes


@lru_cache(maxsize=256)
def entries(data: bytes) -> tuple[Entry, ...]:
    """The entries of a zip."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple(Entry(info.filename, archive.read(info)) for info in archive.infolist())


def zipped(inside: tuple[Entry, ...] | list[Entry], random: Random | None = None) -> bytes:
    """A zip of stored entries; with random, its directory lies somewhere."""
    body, directory = bytearray(), bytearray()
    lies = random is not None and random.random() < 0.5
    for name, content in inside:
        raw, crc = name.encode(), zlib.crc32(content)
        fields = [crc, len(content), len(content), len(body)]
        names = [len(raw), 0]
        if lies and random is not None and random.random() < 0.2:
            fields[random.randrange(4)] = random.choice((*_NUMBERS[:18], len(body) // 2)) & 0xFFFFFFFF
        if lies and random is not None and random.random() < 0.05:
            names[random.randrange(2)] = random.choice((0, 1, 20, 65535))
        body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, *fields[:3], *names) + raw + content
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, *fields[:3], *names, 0, 0, 0, 0, fields[3]
        )
        directory += raw
    ends = [len(inside), len(inside), len(directory), len(body)]
    if lies and random is not None and random.random() < 0.1:
        ends[random.randrange(4)] = random.choice(_NUMBERS[:14])
    return bytes(body + directory) + struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, ends[0] & 0xFFFF, ends[1] & 0xFFFF, *ends[2:], 0
    )


def torch_zip(data: bytes, random: Random) -> bytes:
    """A .pt with another pickle, other entries, or a directory that lies."""
    if random.random() < 0.1:
        return anyhow(data, random)
    inside = list(entries(data))
    if random.random() < 0.85:
        inside = [Entry(n, pickled(d, random)) if n.endswith("data.pkl") else Entry(n, d) for n, d in inside]
    else:
        at, other = random.randrange(len(inside)), random.randrange(len(inside))
        match random.randrange(5):
            case 0:
                del inside[at]
            case 1:
                inside.append(inside[at])
            case 2:
                inside[at] = Entry(inside[at].name, inside[other].data)
            case 3:
                inside[at] = Entry(inside[other].name, inside[at].data)
            case _:
                inside[at] = Entry(inside[at].name, anyhow(inside[at].data, random))
        return zipped(inside, random)
    return zipped(inside)


def zip_structure(data: bytes, random: Random) -> bytes:
    """A .pt whose pickles are as they were, while its entries and its directory are not."""
    inside = list(entries(data))
    for _ in range(random.choice((0, 1, 2))):
        at, other = random.randrange(len(inside)), random.randrange(len(inside))
        inside[at] = Entry(inside[other].name, inside[at].data[: random.choice((None, 0, 1, 64))])
    return zipped(inside, random) if random.random() < 0.9 else anyhow(data, random)


# --- JSON and safetensors

_ODD = (
    *(None, True, False, 0, 1, -1, 2, 7, 64, 1 << 31, 1 << 63, 1 << 64, 10**90, 0.5, 1e308, float("nan"), float("inf")),
    *("", "0", "x", "../x", "/etc/passwd", "a\x1b[31mb", "\ud800", "\x00", "F32", "BF16", "torch.bfloat16", "x" * 300),
    *([], {}, [0], [1, 2], [[]], {"a": 1}, [0, 1 << 62], [1] * 70, ["x"], "model.layers.0.mlp.up_proj.weight"),
)  # fmt: skip


def jsoned(data: bytes, random: Random) -> bytes:
    """Values and keys exchanged for odd ones, parts doubled, lists nested deep."""
    if random.random() < 0.15:
        return anyhow(data, random)
    if random.random() < 0.01:
        depth = random.choice((100, 5_000, 100_000))
        return b'{"a":' * depth if random.random() < 0.5 else b"[" * depth + b"]" * depth
    value = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        value = _changed(value, random)
    return json.dumps(value, ensure_ascii=random.random() < 0.9).encode("utf-8", "surrogatepass")


def _changed(value: Any, random: Random) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.93:
        key = random.choice(list(value))
        if random.random() < 0.08:
            new = random.choice([odd for odd in _ODD if isinstance(odd, str)])
            return {(new if k == key else k): v for k, v in value.items()}
        if random.random() < 0.06:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: _changed(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        return [*value[:at], _changed(value[at], random), *value[at + 1 :]]
    if isinstance(value, str) and value and random.random() < 0.4:  # boxes, class names, numbers in a text
        return anyhow(value.encode("utf-8", "surrogatepass"), random).decode("utf-8", "replace")
    if type(value) is int and random.random() < 0.5:
        return random.choice((value + 1, value - 1, value * 2, value * 8, -value, value + (1 << 32)))
    return random.choice(_ODD)


def safetensors(data: bytes, random: Random) -> bytes:
    """A header that lies about what follows it."""
    if random.random() < 0.1:
        return anyhow(data, random)
    length = int.from_bytes(data[:8], "little")
    header = jsoned(data[8 : 8 + length], random)
    size = len(header) if random.random() < 0.95 else random.choice(_NUMBERS) & ((1 << 64) - 1)
    return size.to_bytes(8, "little") + header + data[8 + length :]


# --- YAML

_YAML_PARTS = (b"\n", b"\n" * 3000, b" " * 3000, b"peft:\n", b"  dim: 1e999\n", b"  dim: 1.2.3\n", b"  alpha: -\n", b"\t",
               b"  dim: 99999999999999999999\n", b"moe_mlp_glu_interleave_size: 4\n", b"&a [*a,*a]\n",
               b"!!python/object:os.system x\n",
               b"\r\n", b"\xff\xfe", b"peft: \n \n \n" * 500, b"  alpha: 0x10\n", b"  alpha: nan\n", b"---\n")  # fmt: skip


def yamled(data: bytes, random: Random) -> bytes:
    """Lines exchanged, and parts that are bombs to a YAML parser or to a pattern."""
    lines = data.splitlines(keepends=True)
    for _ in range(random.choice((1, 2, 4))):
        at = random.randrange(len(lines) + 1)
        lines[at : at + random.choice((0, 0, 1, 2))] = [
            random.choice((*_YAML_PARTS, random.choice(lines or [b""])))
        ]
    joined = b"".join(lines)
    return anyhow(joined, random) if random.random() < 0.3 else joined

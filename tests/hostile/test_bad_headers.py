"""Safetensors headers, indexes and JSON files that lie, or are absurd: one clear error, in bounded time and memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.helpers import cli

from ckptconv.backends import open_checkpoint
from ckptconv.errors import CkptconvError
from ckptconv.formats.json import parse_json, read_json, read_table
from ckptconv.formats.safetensors import read_header
from ckptconv.publish import assets


def a_file(path: Path, header: object, data: int = 24) -> Path:
    """A safetensors file with this header, and so many bytes after it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data))
    return path


def tensor(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = tensor([2, 3], [0, 24])
GAP = "a gap, an overlap or a tensor without a shape"
BYTES = "the byte count of a tensor does not match its shape"
NOT_FILLED = "the tensors of the safetensors file do not fill it"
INVALID = "the safetensors header is not valid JSON"
UNPRINTABLE = "is too long or has unprintable characters"
STRINGS = "is not an object of strings"
DTYPE = "unknown dtype"
HEADERS: dict[str, tuple[Any, str]] = {
    "a list": ([1], "the safetensors header is not a JSON object"),
    "a tensor that is a number": ({"w": 1}, DTYPE),
    "a hole before": ({"w": tensor([2, 2], [8, 24])}, GAP),
    "a hole between": ({"a": tensor([2], [0, 8]), "b": tensor([2], [16, 24])}, GAP),
    "an overlap": ({"a": tensor([4], [0, 16]), "b": tensor([4], [8, 24])}, GAP),
    "bytes of nobody at the end": ({"w": tensor([2], [0, 8])}, NOT_FILLED),
    "a tensor past the end": ({"w": tensor([2, 4], [0, 32])}, NOT_FILLED),
    "offsets that go back": ({"w": tensor([2], [24, 16])}, GAP),
    "negative offsets": ({"w": tensor([2, 3], [-24, 0])}, GAP),
    "a negative size": ({"w": tensor([-2, -3], [0, 24])}, GAP),
    "sizes that overflow 64 bits": ({"w": tensor([1 << 33, 1 << 33], [0, 24])}, BYTES),
    "a size that overflows 64 bits": ({"w": tensor([1 << 64, 0], [0, 24])}, GAP),
    "an offset of 90 digits": ({"w": tensor([2, 3], [0, 10**90])}, BYTES),
    "a size of 5,000 digits": (
        b'{"w": {"dtype": "F32", "shape": [1' + b"0" * 5000 + b', 0], "data_offsets": [0, 24]}}', INVALID,
    ),
    "sizes that are not whole": ({"w": tensor([2.0, 3.0], [0, 24])}, GAP),
    "sizes that are true": ({"w": tensor([True, 6], [0, 24])}, GAP),
    "a shape that is a text": ({"w": tensor("23", [0, 24])}, GAP),
    "a shape of 65 dims": ({"w": tensor([1] * 63 + [2, 3], [0, 24])}, GAP),
    "a shape of half a million dims": ({"w": tensor([2] * 500_000, [0, 24])}, GAP),
    "three offsets": ({"w": tensor([2, 3], [0, 24, 24])}, GAP),
    "no offsets": ({"w": {"dtype": "F32", "shape": [2, 3]}}, GAP),
    "a dtype that is none": ({"w": tensor([2, 3], [0, 24], "F33")}, DTYPE),
    "a dtype that is a table": ({"w": tensor([2, 3], [0, 24], {})}, DTYPE),
    "another dtype's bytes": ({"w": tensor([2, 3], [0, 24], "F64")}, BYTES),
    "metadata that is a list": ({"__metadata__": ["pt"], "w": GOOD}, STRINGS),
    "metadata that is no text": ({"__metadata__": {"format": {"a": 1}}, "w": GOOD}, STRINGS),
    "a name with an escape": ({"w\x1b[2J": GOOD}, UNPRINTABLE),
    "a name of two lines": ({"w\nerror: x": GOOD}, UNPRINTABLE),
    "a name that turns lines around": ({"w\u202eabc": GOOD}, UNPRINTABLE),
    "a name with half a surrogate pair": ({"w\ud800": GOOD}, UNPRINTABLE),
    "a name of a million characters": ({"w" * 1_000_000: GOOD}, UNPRINTABLE),
    "JSON as deep as the stack": (b'{"w":' * 100_000, INVALID),
    "lists as deep as the stack": (b"[" * 100_000, INVALID),
    "UTF-16": (json.dumps({"w": GOOD}).encode("utf-16"), INVALID),
    "a byte order mark": (b"\xef\xbb\xbf" + json.dumps({"w": GOOD}).encode(), INVALID),
    "no text": (b"\xff\xfe\x00", INVALID),
    "nothing": (b"", INVALID),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_bad_header_is_refused(case: str, tmp_path: Path) -> None:
    header, says = HEADERS[case]
    path = a_file(tmp_path / "model.safetensors", header)
    with pytest.raises(CkptconvError, match=says) as error:
        read_header(path)
    assert "model.safetensors" in str(error.value.where)
    assert "\n" not in error.value.what
    assert len(str(error.value)) < 10_000
    ran = cli("inspect", path)
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert "\x1b" not in ran.err


def test_the_good_header_is_read(tmp_path: Path) -> None:
    views, metadata = read_header(a_file(tmp_path / "x", {"__metadata__": {"format": "pt"}, "w": GOOD}))
    assert views["w"].shape == (2, 3)
    assert metadata == {"format": "pt"}
    shape = [1] * 62 + [2, 3]
    assert read_header(a_file(tmp_path / "x", {"w": tensor(shape, [0, 24])}))[0]["w"].shape == tuple(shape)


OUTSIDE = ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\0b.safetensors", "x" * 300, 7,
           None, ["model.safetensors"], "a\x1b[31m.safetensors", "\ud800.safetensors", "..\\model.safetensors"]  # fmt: skip


@pytest.mark.parametrize("file", OUTSIDE, ids=ascii)
def test_an_index_that_names_no_file_of_its_folder(file: object, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    a_file(tmp_path / "model.safetensors", {"w": GOOD})
    a_file(tmp_path / "in" / "model.safetensors", {"w": GOOD})
    index = tmp_path / "in" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": file}}))
    plain = not isinstance(file, str) or "\\" in file  # is a file's name, of one that is not there
    with pytest.raises(CkptconvError, match="the index names other files" if plain else "outside its folder"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        *((wrong, "the index has no weight_map") for wrong in (None, [], {}, "x")),
        ({"w\x1b": "model.safetensors"}, UNPRINTABLE),
    ],
    ids=ascii,
)
def test_an_index_without_a_usable_weight_map(weight_map: object, says: str, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CkptconvError, match=says):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model-00001-of-99999999999.safetensors", "model-1-of-1048577.safetensors"])
def test_a_set_of_more_files_than_there_can_be(name: str, tmp_path: Path) -> None:
    a_file(tmp_path / name, {"w": GOOD})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CkptconvError, match="too many ranks or files"):
        open_checkpoint(tmp_path)


JSON: dict[str, bytes] = {
    "tables in tables": b'{"a":' * 200_000,
    "lists in lists": b"[" * 200_000 + b"]" * 200_000,
    "a number of 200 digits": b'{"a": 1' + b"0" * 200 + b"}",
    "a number of 100,000 digits": b'{"a": ' + b"1" * 100_000 + b"}",
    "no text": b"\xff\xff",
    "UTF-32": "{}".encode("utf-32"),
    "a bare word": b"{a: 1}",
    "nothing": b"",
}


@pytest.mark.parametrize("case", JSON)
def test_bad_json_is_refused(case: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(JSON[case])
    says = "the JSON is nested too deeply" if " in " in case else "not valid JSON"
    with pytest.raises(CkptconvError, match=says):
        parse_json(JSON[case], "x")
    for read in (read_json, read_table, assets.read_config):
        with pytest.raises(CkptconvError, match=says) as error:
            read(tmp_path / "config.json")
        assert "config.json" in str(error.value.where)


def test_a_huge_json_file_is_not_read(tmp_path: Path) -> None:
    """A sparse one of a terabyte, where the file system has such."""
    path = tmp_path / "config.json"
    path.touch()
    try:
        os.truncate(path, 1 << 40)
    except OSError:
        os.truncate(path, 1 << 30)
    for read in (read_table, assets.read_config):
        with pytest.raises(CkptconvError, match="too large") as error:
            read(path)
        assert "too large" in str(error.value)


def test_half_a_surrogate_pair_in_a_config_is_copied_as_it_was(tmp_path: Path) -> None:
    """JSON can say it and UTF-8 cannot."""
    assets.write_config(tmp_path, {"name": "\ud800é", "a": 1}, None)
    raw = (tmp_path / "config.json").read_bytes()
    assert b"\\ud800" in raw
    assert json.loads(raw) == {"name": "\ud800é", "a": 1}

"""Reads the headers of safetensors files on the Hub with two range requests per file, and no byte of the weights.

huggingface_hub's own parse_safetensors_file_metadata always downloads the first 100 kB, which may include weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ckptconv.backends.huggingface.read import Opened
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.safetensors import LENGTH, header_length, parse_header
from ckptconv.hub.bounds import MOST
from ckptconv.hub.errors import scrub
from ckptconv.hub.reading import Listing, asked

_AT_ONCE = 8


def headers(listing: Listing, names: Sequence[str]) -> list[Opened]:
    """Read the headers of some files, in the given order. The views name files that are not on this disk.

    Args:
        listing: the files of the repository.
        names: the safetensors files.

    Raises:
        CkptconvError: the Hub cannot be asked, or a header is damaged.
    """

    def one(name: str) -> Opened:
        size, path = listing.files[name], Path(listing.repo.name, name)
        first = _range(listing, name, 0, min(LENGTH, size))
        data = _range(listing, name, LENGTH, LENGTH + header_length(path, size, first))
        return Opened(path, size, parse_header(path, size, data)[0])

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(one, names))


def _range(listing: Listing, name: str, begin: int, end: int) -> bytes:
    """The bytes [begin, end) of a file.

    Raises:
        CkptconvError: the answer has other bytes.
    """
    if begin == end:
        return b""
    return asked(listing.repo, lambda: _request(listing, name, begin, end), max(MOST, end - begin))


def _request(listing: Listing, name: str, begin: int, end: int) -> bytes:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    url = hf_hub_url(listing.repo.name, name, revision=listing.commit, endpoint=constants.ENDPOINT)
    wanted = {**build_hf_headers(library_name="ckptconv"), "Range": f"bytes={begin}-{end - 1}"}
    # The length counts bytes on the wire, so the body must not be compressed.
    wanted["Accept-Encoding"] = "identity"
    with http_stream_backoff("GET", url, headers=wanted, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        length = answer.headers.get("Content-Length", "")
        if answer.status_code != 206 or length != str(end - begin):  # the body has not been read yet
            raise CkptconvError(
                "the Hub's storage does not support range requests, so the headers cannot be read on their own",
                where=f"{listing.repo.name}/{name}",
                found=f"status {answer.status_code}, {length or 'unknown'} bytes",
                wanted=f"206 with {end - begin} bytes",
                hint=f"hf download {listing.repo.name}, then name the folder",
                kind=Kind.ENVIRONMENT,
            )
        stated = answer.headers.get("Content-Range", "")
        if stated and not stated.startswith(f"bytes {begin}-{end - 1}/"):
            raise CkptconvError(
                "the Hub's storage answered with other bytes than were asked for",
                where=f"{listing.repo.name}/{name}",
                found=scrub(stated, None)[:80],
                wanted=f"bytes {begin}-{end - 1}",
                kind=Kind.ENVIRONMENT,
            )
        return bytes(answer.read())

"""The path of a file that holds tensors, with what has to be checked once bytes of it are read."""

from __future__ import annotations


class StoredFile(str):
    """A path that a format's reader refines, where a plan computes what it does not read.

    It compares, hashes and prints as the plain path. `Chunk.file` holds it, so that whoever reads the elements checks the
    computation first (`read.files.Files` does), however the chunk got there.
    """

    __slots__ = ()

    def check(self, handle: int, start: int) -> None:
        """Check that the bytes at `start` are those of the tensor for which they were computed.

        Args:
            handle: an open file descriptor of the file.
            start: a byte in the file that is about to be read.

        Raises:
            CkptconvError: the file has something else there, or cannot be read.
        """
        raise NotImplementedError

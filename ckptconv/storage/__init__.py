"""Stores as places of checkpoints: folders of `s3://`, `gs://`, `az://` and of the Hub that read like folders on a disk."""

from ckptconv.storage.address import is_address
from ckptconv.storage.open import located, on_disk, place_in, pushed

__all__ = ["is_address", "located", "on_disk", "place_in", "pushed"]

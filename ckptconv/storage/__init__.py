"""Object stores as places of checkpoints: `s3://`, `gs://` and `az://` folders that read like folders on a disk."""

from ckptconv.storage.address import is_address
from ckptconv.storage.open import located, on_disk, pushed

__all__ = ["is_address", "located", "on_disk", "pushed"]

"""Orbax checkpoints of JAX trainers: Zarr arrays in an OCDBT database, read with tensorstore (the extra `orbax`)."""

from ckptconv.backends.conventions import Rank, Trainer

TRAINERS = (
    Trainer(  # orbax/checkpoint/_src/path/step.py; MaxText: src/maxtext/common/checkpointing.py, whose item is `items`
        name="Orbax",
        steps=("{step}",),
        inside=("_CHECKPOINT_METADATA",),
        below=("checkpoints",),
        roles={"items": Rank.TRAINED, "default": Rank.TRAINED, "model_params": Rank.TRAINED},
        not_assets=("_METADATA", "_sharding", "array_metadatas", "ocdbt.process_*", "manifest.ocdbt"),
    ),
)

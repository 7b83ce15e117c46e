"""Writers of sparse checkpoints for `benchmarks.scale`: metadata and headers as the frameworks write them, data as holes."""

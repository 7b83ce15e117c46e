"""verl's FSDP rank files: `model_world_size_W_rank_R.pt`."""

"""Megatron checkpoints: torch_dist, `mp_rank_*` rank files, and Megatron-FSDP."""

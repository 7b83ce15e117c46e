"""DeepSpeed's ZeRO 0 to 3 and universal checkpoints."""

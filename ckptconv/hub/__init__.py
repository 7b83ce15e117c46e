"""The Hub: repositories as checkpoints (headers alone) or as folders (downloaded), and what can go wrong with it."""

"""torch.distributed.checkpoint folders: `.metadata` and `.distcp` files, and HuggingFaceStorageWriter's shards."""

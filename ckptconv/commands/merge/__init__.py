"""merge: converts a checkpoint into a model folder; see `run.merge`."""

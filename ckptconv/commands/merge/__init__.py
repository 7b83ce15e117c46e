"""merge: a checkpoint becomes a model folder; see `run.merge`."""

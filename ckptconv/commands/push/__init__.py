"""push: a model folder goes to the Hub; see `run.push`."""

"""push: uploads a model folder to the Hub; see `run.push`."""

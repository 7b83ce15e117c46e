"""Other machines that may run a plan. Each engine is called as `copy` is, and leaves the same files in the work folder."""

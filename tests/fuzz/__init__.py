"""Fuzzing of everything that reads a checkpoint: `python -m tests.fuzz --inputs N --seed S`."""

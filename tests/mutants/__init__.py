"""Builds of ckptconv with one rule taken out. Each has to fail a named end-to-end test: `python -m tests.mutants`."""

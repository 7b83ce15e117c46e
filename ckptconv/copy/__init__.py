"""Runs a plan: blocks are read, computed and written to the output files."""

"""Runs a plan: it reads, computes and writes the blocks of the output files."""

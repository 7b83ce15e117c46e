"""Reads repositories on the Hub: as checkpoints (only headers) or as downloaded folders, with the Hub's errors explained."""

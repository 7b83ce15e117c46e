"""Reads the elements of views in bounded memory."""

"""Turns result records into screens and JSON. This room knows only the records, not how they were computed."""

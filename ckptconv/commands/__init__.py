"""One package per command: plain functions that return plain records. Nothing here prints."""

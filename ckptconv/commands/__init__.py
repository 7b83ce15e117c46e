"""One module a command: plain functions that return plain records; nothing here prints."""

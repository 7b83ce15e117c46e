"""File containers: torch's zip files, pickles as inert stand-ins, safetensors, JSON. Nothing in a file is executed."""

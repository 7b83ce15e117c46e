"""Hugging Face model folders, PEFT adapters, and single files of weights."""

"""Writes ckptconv/models/skeletons.zip: which tensors every transformers class has, as rules over its config."""

"""Tensors as positions in files, without data: views, boxes, dtypes and the Checkpoint record."""

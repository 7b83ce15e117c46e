"""What a tensor is, as places in files and without data: views, boxes, dtypes, the Checkpoint record."""

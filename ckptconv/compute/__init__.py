"""Computes tensors that are not copies: casts, LoRA updates, dequantised weights, block by block in bounded memory.

A plan that computes something has the records of `sources`. `block` and `tiles` compute them, and import numpy.
"""

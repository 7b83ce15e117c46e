"""Megatron's names and layouts -> the Hub's: one table a kind of model, each line naming both sides."""

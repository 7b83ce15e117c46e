"""Engines that run a plan on other machines. Each has the signature of `copy` and fills the same work folder."""

"""Trained (module) names and layouts to Hub names and layouts, and back."""

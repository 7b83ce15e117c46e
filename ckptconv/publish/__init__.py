"""The output folder appears whole or not at all: target, locks, assets, receipt."""

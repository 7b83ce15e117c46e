"""Makes the output folder appear completely or not at all: target, locks, assets, receipt."""

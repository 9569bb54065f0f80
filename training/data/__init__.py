"""Packed datasets, importers, sampling and augmentation."""

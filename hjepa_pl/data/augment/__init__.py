"""Augmentation on the device: a function of images and counters."""

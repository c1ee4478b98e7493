"""Helpers that are not about JEPA: settings, run length, memory, processes."""

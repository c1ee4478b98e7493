"""Hierarchical joint-embedding predictive pretraining."""

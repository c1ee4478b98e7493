"""Objectives: prediction and regularisation."""

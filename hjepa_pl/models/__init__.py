"""Encoder, predictor, projector."""

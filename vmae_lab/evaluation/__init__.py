"""Evaluation: frozen readouts, reconstruction error, and metrics with intervals."""

"""Evaluation: frozen readouts, views of test videos, features of windows, reconstruction error, mAP, metrics with intervals."""

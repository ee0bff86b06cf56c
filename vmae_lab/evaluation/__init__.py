"""Evaluation: accuracy, frozen probes, multi-view testing, retrieval, window features, reconstruction, detection mAP."""

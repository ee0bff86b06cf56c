"""Figures: charts, clips, masks, detections."""

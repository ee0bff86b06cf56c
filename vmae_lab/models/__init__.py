"""Models as pure functions of tensors: sizes, encoder trunk, VideoMAE, classifier, detectors; checkpoints; analytic cost."""

"""Models as pure functions of tensors (encoder, VideoMAE, classifier, detectors), their checkpoints and analytic cost."""

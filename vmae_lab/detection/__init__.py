"""Detection: labels of ActionFormer's points, Soft-NMS, and a person detector."""

"""Detection: label assignment and loss of ActionFormer, Soft-NMS, and a person detector."""

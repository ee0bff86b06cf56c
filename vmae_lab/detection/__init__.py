"""Detection: who does what where in a key frame, and when in a long video."""

"""Data: the embedded data set, decoding, sampling, crops, and the order of clips."""

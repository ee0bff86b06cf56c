"""Data: the embedded data set, lists, scenes and untrimmed videos; decoding, sampling, crops, and the order of clips."""

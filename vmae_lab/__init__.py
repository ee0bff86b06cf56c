"""vmae_lab: a reproducible research workbook of VideoMAE V2, dual-masked video masked autoencoders."""

from importlib.metadata import version

__version__ = version("vmae-lab")

"""motionworld: a small world of real mp4 files whose actions only motion tells apart.

`motion.py` moves things, `sources.py` and `plaids.py` draw them, `dataset.py` writes the files and reads their list.
"""

from vmae_lab.data.motionworld.dataset import ClipRecord, MotionworldSettings, open_motionworld
from vmae_lab.data.motionworld.motion import ACTIONS
from vmae_lab.data.motionworld.sources import SOURCES

__all__ = ["ACTIONS", "SOURCES", "ClipRecord", "MotionworldSettings", "open_motionworld"]

"""motionworld: small embedded data sets of real mp4 files whose actions can only be recognised by motion."""

from vmae_lab.data.motionworld.dataset import ClipRecord, MotionworldSettings, open_motionworld
from vmae_lab.data.motionworld.motion import ACTIONS
from vmae_lab.data.motionworld.sources import SOURCES

__all__ = ["ACTIONS", "SOURCES", "ClipRecord", "MotionworldSettings", "open_motionworld"]

"""motionworld: small embedded data sets of mp4 files whose actions can only be recognized from motion."""

from vmae_lab.data.motionworld.dataset import ClipRecord, MotionworldSettings, open_motionworld
from vmae_lab.data.motionworld.motion import ACTIONS
from vmae_lab.data.motionworld.sources import SOURCES

__all__ = ["ACTIONS", "SOURCES", "ClipRecord", "MotionworldSettings", "open_motionworld"]

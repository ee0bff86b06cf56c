"""Lists of videos with labels and splits. No video is opened here.

`reader.py` reads one list, with `formats.py` for list files, `folders.py` for folders and globs, and `labels.py` for labels and
classes. `splits.py` has the settings of all lists and reads every split. `hold_out.py` divides one list into splits.
"""

from vmae_lab.data.video_lists.formats import ListError
from vmae_lab.data.video_lists.hold_out import HoldOut
from vmae_lab.data.video_lists.reader import VideoList, read_list
from vmae_lab.data.video_lists.splits import (
    ListSettings,
    SourceSettings,
    groups_of,
    lacking_classes,
    read_all,
    read_pretrain,
    read_split,
)

__all__ = [
    "HoldOut", "ListError", "ListSettings", "SourceSettings", "VideoList", "groups_of", "lacking_classes",
    "read_all", "read_list", "read_pretrain", "read_split",
]  # fmt: skip

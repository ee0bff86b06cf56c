"""Own or real videos by lists: which videos there are, what they show, and how they are split.

`formats.py` reads list files, `folders.py` folders and globs; `reading.py` checks what they say, `labels.py` which classes
their labels stand for; `writing.py` writes lists. `settings.py` says which lists there are,
`hold_out.py` divides one list into splits, `splits.py` reads all of them with the same classes. Nothing here opens a video.
"""

from vmae_lab.data.video_lists.formats import ListError
from vmae_lab.data.video_lists.hold_out import HoldOut
from vmae_lab.data.video_lists.reader import VideoList, read_list
from vmae_lab.data.video_lists.settings import ListSettings, SourceSettings
from vmae_lab.data.video_lists.splits import groups_of, lacking_classes, read_all, read_pretrain, read_split

__all__ = [
    "HoldOut", "ListError", "ListSettings", "SourceSettings", "VideoList", "groups_of", "lacking_classes",
    "read_all", "read_list", "read_pretrain", "read_split",
]  # fmt: skip

"""Numbers that the paper reports: VideoMAE V2 (Wang et al., CVPR 2023, arXiv 2303.16727). No run of this package made them.

Unless stated otherwise: ViT-B, pre-trained for 800 epochs on Something-Something V2 with clips of 16x224x224.
"""

from dataclasses import dataclass

CITATION = "Wang et al., VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking, CVPR 2023 (arXiv 2303.16727)"


@dataclass(frozen=True)
class DecoderMaskRow:
    """A row of table 1: top-1 on Something-Something V2 after fine-tuning, and the pre-training cost (1e9 MACs per clip)."""

    top1_percent: float
    giga: float


TABLE_1 = {
    "none": DecoderMaskRow(70.28, 35.48),
    "frame_50": DecoderMaskRow(69.76, 25.87),
    "random_50": DecoderMaskRow(64.87, 25.87),
    "running_cell_50_all": DecoderMaskRow(66.74, 25.87),
    "running_cell_25": DecoderMaskRow(70.22, 31.63),
    "running_cell_50": DecoderMaskRow(70.15, 25.87),
    "running_cell_75": DecoderMaskRow(70.01, 21.06),
}


# Frame mAP on AVA 2.2 by encoder: pre-trained without labels, and then also trained with the labels of Kinetics (VideoMAE, Tong
# et al., NeurIPS 2022, arXiv 2203.12602).
AVA_FRAME_MAP = {"small": (22.5, 28.4), "base": (26.7, 31.8), "large": (34.3, 37.0), "huge": (36.5, 39.5)}


# mAP of ActionFormer by data set and features: THUMOS14 with I3D as reported by Zhang et al. (ECCV 2022, arXiv 2202.07925), the
# others from VideoMAE V2's table of temporal detection.
SEGMENT_MAP = {
    ("THUMOS14", "I3D"): {
        "mAP at 0.3": 82.1, "mAP at 0.4": 77.8, "mAP at 0.5": 71.0, "mAP at 0.6": 59.4, "mAP at 0.7": 43.9, "mean mAP": 66.8,
    },
    ("THUMOS14", "VideoMAE V2, giant"): {"mean mAP": 69.6},
    ("FineAction", "VideoMAE V2, giant"): {"mean mAP": 18.2},
}  # fmt: skip


@dataclass(frozen=True)
class DecoderCost:
    """Pre-training costs of a model in table 2, without and with the decoder mask (cell 50%).

    `giga`: 1e9 multiply-accumulates per clip. `memory`: per clip, in the paper's unit M. `hours`: on 64 A100 GPUs.
    """

    giga: tuple[float, float]
    memory: tuple[int, int]
    hours: tuple[float, float]
    speed_up: float


TABLE_2 = {
    "base": DecoderCost((35.48, 25.87), (631, 328), (28.4, 15.9), 1.79),
    "giant": DecoderCost((263.93, 241.61), (1753, 1050), (356, 241), 1.48),
}

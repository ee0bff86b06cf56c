"""Analytic cost of pre-training next to the figures in the paper: `python benchmarks/paper_costs.py`."""

from tabulate import tabulate

from vmae_lab.masking import MaskSettings
from vmae_lab.models.flops import TokenCounts, pretrain_cost
from vmae_lab.models.sizes import SIZES, ClipShape

# Size, decoder ratio, reported G, and its convention (VideoMAE V2, tables 1 and 2).
REPORTED = [
    ("base", 0.0, 35.48, "fvcore"),
    ("base", 0.25, 31.63, "fvcore"),
    ("base", 0.5, 25.87, "fvcore"),
    ("base", 0.75, 21.06, "fvcore"),
    ("giant", 0.0, 263.93, "macs"),
    ("giant", 0.5, 241.61, "macs"),
]


def main() -> None:
    rows = []
    for name, ratio, reported, convention in REPORTED:
        clip = ClipShape(patch=SIZES[name].patch)
        decoder = "running_cell" if ratio else "none"
        counts = TokenCounts.of(MaskSettings(encoder_ratio=0.9, decoder=decoder, decoder_ratio=ratio), clip)
        cost = pretrain_cost(SIZES[name], clip, counts.visible, counts.decoded)
        ours = getattr(cost, convention) / 1e9
        here = pretrain_cost(SIZES[name], clip, counts.visible, counts.decoded, embed_visible=True).macs / 1e9
        rows.append([name, ratio, counts.visible, counts.decoded, convention, f"{reported:.2f}", f"{ours:.2f}", f"{here:.2f}"])
    heads = [
        "size",
        "decoder ratio",
        "visible",
        "decoded",
        "convention",
        "paper, G",
        "counted, G",
        "here, G MAC (hidden patches not embedded)",
    ]
    print(tabulate(rows, headers=heads, disable_numparse=True))


if __name__ == "__main__":
    main()

"""Counts of what slows training on several GPUs. They need no GPU.

Run `python benchmarks/gpu_readiness.py --out reports/benchmarks`. Collectives are counted in two CPU processes that communicate
through gloo.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from parts.written import machine_words
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmae_lab.data.dataset import DataSettings
from vmae_lab.data.motionworld import MotionworldSettings
from vmae_lab.masking import MaskSettings
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.training.dataloader import BatchParts, plan_loading
from vmae_lab.training.distributed import accelerator_for
from vmae_lab.training.loop import Trainer
from vmae_lab.training.settings import Compute
from vmae_lab.training.tasks.pretrain import PretrainSettings, PretrainTask
from vmae_lab.utils.atomic_io import write_text
from vmae_lab.utils.seeding import seeded

MODEL = ModelSettings(size="micro", frames=4, side=16, patch=4)
STEPS, ACCUMULATION = 3, 4
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


# The CPU waits for a GPU to learn their result.
WAITING = ("aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select")


class Noise:
    """Eight clips of random pixels."""

    sources, labels = ["noise"] * 8, np.zeros(8, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.sources)

    def video(self, index: int, choose: Any, short_side: int | None = None) -> torch.Tensor:
        shape = (3, len(choose(MODEL.frames)), MODEL.side, MODEL.side)
        return torch.randint(256, shape, generator=torch.Generator().manual_seed(index)).to(torch.uint8)


def pretraining(**settings: Any) -> PretrainTask:
    """Return a pre-training with random masks, so that clips have unequal numbers of tokens in the loss."""
    masks = MaskSettings(encoder="random", encoder_ratio=0.75, decoder="random", decoder_ratio=0.5)
    data = DataSettings(motionworld=MotionworldSettings(side=MODEL.side), resident_side=MODEL.side)
    settings = {"steps": STEPS, "batch_size": 8, "accumulation": ACCUMULATION, "lr": 1e-3, **settings}
    return PretrainTask(MODEL, masks, PretrainSettings(**settings), data, Noise(), seed=0)


def collectives(precision: str = "fp32") -> dict[str, tuple[int, int]]:
    """Count the collectives of three optimizer steps, and their bytes, in a process that a launcher has started."""
    task = pretraining(precision=precision)
    accelerator = accelerator_for(task.settings)
    with seeded(task.seed, "initial weights"):
        trainer = Trainer(task, Path(), Compute(), accelerator, keep=())
    dataset = BatchParts(task.training_batch, trainer.rows)
    with Operators() as operators:
        for step in range(STEPS):
            trainer.train_step(dataset[step])
            trainer.state.step += 1
    return {name.removeprefix("c10d::").strip("_"): made for name, made in operators.made.items() if name.startswith("c10d::")}


class Operators(TorchDispatchMode):
    """Counts the operators inside the block by name, and the bytes of their first argument, which they write."""

    def __enter__(self) -> Self:
        self.made: dict[str, tuple[int, int]] = {}
        return super().__enter__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        calls, total = self.made.get(name := function._schema.name, (0, 0))
        size = sum(value.nbytes for value in tree_leaves(args[:1]) if isinstance(value, torch.Tensor))
        self.made[name] = calls + 1, total + size
        return function(*args, **(kwargs or {}))


def synchronizations(by_masks: bool = False) -> int:
    """Count the operators of forward, loss and backward of a pre-training that make the CPU wait for a GPU."""
    task = pretraining()
    model, batch = task.build(), task.training_batch(0, range(8))
    masks = task.batch(0, range(8))
    with Operators() as operators:
        if by_masks:
            model(batch["video"], masks["encoder_mask"], masks["decoder_mask"])
        else:
            task.loss(model, batch, torch.device("cpu")).backward()
    return sum(operators.made.get(name, (0, 0))[0] for name in WAITING)


def graphs(by_masks: bool = False) -> tuple[int, int]:
    """Return the numbers of graphs and graph breaks of forward."""
    task = pretraining()
    model, batch = task.build(), task.training_batch(0, range(8)) | task.batch(0, range(8))
    names = ("encoder_mask", "decoder_mask") if by_masks else ("visible", "decoded")
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(batch["video"], *(batch[name] for name in names))
    return explained.graph_count, explained.graph_break_count


def launched(sharded: bool = False, precision: str = "fp32") -> dict[str, tuple[int, int]]:
    """Return the collectives of the first of two processes: name -> calls and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "collectives.json"
        environment = {**os.environ, **ON_CPU, **(FSDP if sharded else {})}
        command = [sys.executable, *LAUNCHER, __file__, "--collectives", str(file), "--precision", precision]
        subprocess.run(command, env=environment, check=True)
        return json.loads(file.read_text())


def prefetched_bytes() -> tuple[int, int]:
    """Return the bytes that the loader workers of eight processes build ahead in pre-training on Kinetics-400, now and before.

    As in params/paper/k400.yaml: 256 clips of 16 x 224 x 224 pixels per process and step, and 10 workers per process.
    """
    task = pretraining(batch_size=2048, accumulation=1)
    task.model, rows, workers, processes = ModelSettings(), range(256), 10, 8
    loading = plan_loading(task.row_size, rows, workers, Compute().prefetch_mib * 2**20)
    return processes * loading.shared_bytes, processes * (2 * workers + 1) * len(rows) * task.row_size.bytes


def table() -> pd.DataFrame:
    """Count everything. Values before the changes are from the review, and from the first version of this file."""
    ddp, fsdp, bf16 = launched(), launched(sharded=True), launched(sharded=True, precision="bf16")
    none, prefetched = (0, 0), [f"{size / 1e9:.1f}" for size in prefetched_bytes()]
    rows = [
        ("DDP: all-reduces", 15, ddp["allreduce"][0]),
        ("DDP: broadcasts", 14, ddp.get("broadcast", none)[0]),
        ("FSDP2: all-reduces", 3, fsdp.get("allreduce", none)[0]),
        ("FSDP2: reduce-scatters", f"{21 * ACCUMULATION} (on CPUs only)", fsdp["reduce_scatter_base"][0]),
        ("FSDP2 in bf16: gathered MB", *(f"{counts['allgather_base'][1] / 1e6:.1f}" for counts in (fsdp, bf16))),
        ("DDP, FSDP2: operators per micro-batch for which the CPU waits", synchronizations(by_masks=True), synchronizations()),
        ("DDP, FSDP2: graph breaks in forward", f"6 (now {graphs(by_masks=True)[1]} with masks)", graphs()[1]),
        ("steps in which the CPU waits for numbers of other processes", "all", "log steps, and one in about 5 s"),
        ("Kinetics-400 on 8 GPUs: GB that loader workers build ahead", prefetched[1], prefetched[0]),
    ]
    return pd.DataFrame([{"count": name, "before": before, "now": now} for name, before, now in rows])


WORDS = """\
Collectives are those of 3 steps x 4 micro-batches of a micro model's pre-training (random masks) in two CPU processes (gloo),
counted in the first process by a TorchDispatchMode; those before on commit 8aee6e0, with the profiler. A review of commit
3b974f4 counted 12 of the 15 all-reduces, one per micro-batch; the other 3 exchanged the weights of the losses. The two
broadcasts that are left are of the order of DDP's buckets, in the first step. The 84 reduce-scatters were an error of our use
of accelerate on CPUs; on GPUs there should have been 21. Gathered bytes are of both passes of all micro-batches; before, bf16
training gathered float32.

Operators for which the CPU waits are `nonzero`, `_local_scalar_dense` and `masked_select`: now in forward, loss and backward;
before in forward with masks, which DDP and FSDP2 moved to the device. On one GPU there were none. Copies that wait for a GPU
cannot be counted without one. Graph breaks are counted by `torch._dynamo.explain`; the review found 6. The loader's bytes are
computed from its plan; a test counts the rows that its workers have built. No GPU was available, so times are not measured.
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, help="folder for the table")
    arguments.add_argument("--collectives", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--precision", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.collectives:
        counts = collectives(options.precision)
        if os.environ["RANK"] == "0":
            options.collectives.write_text(json.dumps(counts))
        torch.distributed.destroy_process_group()
        return
    counted = table().to_markdown(index=False)
    page = f"# Ready for several GPUs: counts\n\n{WORDS}\n{machine_words()}.\n\n{counted}\n"
    print(page)
    if options.out:
        write_text(options.out / "gpu_readiness.md", page)


if __name__ == "__main__":
    main()

"""`vmae-lab doctor`: check a machine before a long run."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmae_lab.cli.parameters import NOTHING, Overrides, TakesPairs, output_file
from vmae_lab.cli.stages import read_recipe
from vmae_lab.utils.counts import counted

commands = typer.Typer()


@commands.command(
    cls=TakesPairs,
    epilog="\b\nExamples:\n  vmae-lab doctor\n  vmae-lab doctor paper/k400 -p compute.launch eight_gpus --json doctor.json",
)
def doctor(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="The planned run: a scale (smoke, paper/k400), or the path of a YAML file."),
    ] = "smoke",
    override: Overrides = NOTHING,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=output_file(".json"), help="Also write the results to this file (.json)."),
    ] = None,
) -> None:
    """Check this machine before a long run, in at most two minutes: packages, decoders, devices, disks, limits, a killed and
    resumed training, and the speed of the data loader for the pre-training of a recipe. Exits with status 1 if a check fails.
    """
    from tabulate import tabulate

    from vmae_lab.lab.doctor import examine
    from vmae_lab.utils.atomic_io import make_folder, write_json

    started = time.perf_counter()
    findings = examine(lambda: read_recipe(recipe, override, NOTHING))
    seconds = time.perf_counter() - started
    rows = [(finding.check, finding.result, finding.figure, finding.remedy) for finding in findings]
    print(tabulate(rows, ["check", "result", "figure", "remedy"], tablefmt="simple", maxcolwidths=[None, None, 64, 44]))
    results = [finding.result for finding in findings]
    counts = ", ".join(f"{results.count(result)} {result}" for result in ("ok", "warning", "failed") if result in results)
    print(f"\n{counted(len(results), 'check')} for {recipe} in {seconds:.0f} s: {counts}")
    if json:
        make_folder(json.parent)
        write_json(json, {"recipe": recipe, "seconds": seconds, "checks": [asdict(finding) for finding in findings]})
    raise typer.Exit(1 if "failed" in results else 0)

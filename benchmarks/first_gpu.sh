#!/usr/bin/env bash
# What to measure in the first ten minutes on a GPU, in five parts:
#   tests     versions, and the quick tests of models, training and devices
#   steps     clips per second, memory and MFU of a pre-training step
#   resume    a pre-training in bf16 that gets SIGTERM and resumes
#   ablation  the decoder-mask ablation at scale gpu, with one seed and few steps
#   shares    how much of the ablation's time is training, and how much evaluation
#
#   bash benchmarks/first_gpu.sh [FOLDER]        tables go to FOLDER; by default reports/benchmarks
#   TINY=1 bash benchmarks/first_gpu.sh FOLDER   tiny models, to test this script, also on a CPU
#
# Each part has a time limit. If a part fails, the others still run, and its log stays in FOLDER. The table first_gpu.md has the
# result of each part. The exit status is 0 if all parts passed. PYTHON is the Python to use.
set -uo pipefail
script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
root=$(dirname "$(dirname "$script")")
tiny=${TINY:-}
if [ -n "$tiny" ] && [ $# -eq 0 ]; then
    echo "TINY=1 needs a folder: bash $0 FOLDER" >&2
    exit 2
fi
mkdir -p "${1:-$root/reports/benchmarks}" || exit 2
out=$(cd "${1:-$root/reports/benchmarks}" && pwd)
cd "$root" || exit 2
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# Part, time limit in seconds.
limits="tests 100 steps 240 resume 80 ablation 140 shares 20"
# A small part of the data of scale gpu: 576 clips, which 16 cores write in seconds. 160 labels need 20 clips per class.
recipe=(gpu -p data.motionworld.train 24 -p data.motionworld.validation 4 -p data.motionworld.test 8)
tests=(tests/models tests/training -n 8 --dist loadfile)
steps=(--sizes large giant base small --batch 64 256 --ratios 0 0.5 --steps 5 --compile --seconds 200)
pretrain=(-p pretrain.steps 600 -p pretrain.warmup_steps 20 -p pretrain.keep_at "[]" -p compute.log_every 20)
ablation=(
    -p seeds "[0]" -p pretrain.steps 100 -p pretrain.warmup_steps 10 -p evaluate.finetune.steps 20
    -p evaluate.finetune.warmup_steps 2
)
if [ -n "$tiny" ]; then
    limits="tests 600 steps 600 resume 600 ablation 600 shares 600" # other programs may use the cores
    recipe=(smoke)
    tests=(tests/models/test_shapes.py tests/training/test_settings.py)
    steps=(--sizes tiny --side 32 --batch 1 2 --ratios 0 0.5 --steps 1)
    pretrain=(-p pretrain.steps 100 -p pretrain.keep_at "[]" -p compute.log_every 5)
    ablation=(-p seeds "[0]" -p arms "[none, running_cell_50]")
fi

# ----------------------------------------------------------------------------------------------------------------------
# The parts. The last line that a part prints is shown in the table.

part_tests() {
    "$python" -m vmae_lab info | tee "$VMAE_LAB_PROJECT/info.txt" &&
        env -u PYTEST_XDIST_WORKER -u VMAE_LAB_PROJECT OMP_NUM_THREADS=1 \
            "$python" -m pytest -q -p no:cacheprovider -m "not slow" "${tests[@]}"
}

part_steps() {
    "$python" benchmarks/pretrain_step.py "${steps[@]}" --out "$out" && echo "see pretrain_step"
}

part_resume() {
    local command=("$python" -m vmae_lab pretrain "${recipe[@]}" --seed 0 -p pretrain.precision bf16 "${pretrain[@]}")
    local runs="$VMAE_LAB_PROJECT/runs" status=0 stopped
    "${command[@]}" &
    local training=$!
    until cat "$runs"/pretrain-*/metrics.jsonl 2>/dev/null | grep -q step; do
        if ! kill -0 "$training" 2>/dev/null; then
            echo "the training ended before its first step"
            return 1
        fi
        sleep 0.1
    done
    kill -TERM "$training"
    wait "$training" || status=$?
    if [ "$status" -ne 143 ]; then
        echo "after SIGTERM, the training ended with status $status instead of 143"
        return 1
    fi
    "${command[@]}" || return 1
    cat "$runs"/pretrain-*/run.log
    stopped=$(grep -o "from step [1-9][0-9]*.* bf16 mixed precision" "$runs"/pretrain-*/run.log | cut -d " " -f 3)
    [ -n "$stopped" ] || return 1
    rm -r "$runs" # so that the table of the shares has only the ablation
    echo "stopped by SIGTERM, resumed from step $stopped"
}

part_ablation() {
    "$python" -m vmae_lab run notebooks/ablation_decoder_mask.ipynb --scale "${recipe[@]}" "${ablation[@]}" || return 1
    echo "$(ls "$VMAE_LAB_PROJECT"/runs/*/result.json | wc -l) stages in $SECONDS s"
}

part_shares() {
    "$python" benchmarks/stage_seconds.py --runs "$VMAE_LAB_PROJECT/runs" --out "$out" && echo "see stage_seconds"
}

if [ -n "${PART:-}" ]; then
    "part_$PART"
    exit
fi

# ----------------------------------------------------------------------------------------------------------------------
# Run them one after another

if [ -z "$tiny" ] && ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "$python finds no GPU. To test this script on a CPU: TINY=1 bash $0 FOLDER" >&2
    exit 2
fi
# A project of its own: runs, reports and embedded data of this script are removed at its end.
VMAE_LAB_PROJECT=$(mktemp -d)
export VMAE_LAB_PROJECT VMAE_LAB_HOME="$VMAE_LAB_PROJECT/home" VMAE_LAB_PROGRESS=off
trap 'rm -rf "$VMAE_LAB_PROJECT"' EXIT
ln -s "$root/params" "$root/notebooks" "$VMAE_LAB_PROJECT"

failed=0
rows=""
set -- $limits
while [ $# -gt 0 ]; do
    part=$1 limit=$2
    shift 2
    log="$out/first_gpu-$part.log"
    before=$SECONDS
    PART=$part timeout --kill-after=10 "$limit" bash "$script" "$out" >"$log" 2>&1
    status=$?
    case $status in
        0) result=passed ;;
        124 | 137) result="time limit" ;;
        *) result="failed ($status)" ;;
    esac
    last=$(tail -n 1 "$log" | tr '|\r' '  ' | cut -c 1-100)
    row="| $part | $result | $((SECONDS - before)) | $limit | $last |"
    echo "$row"
    rows+="$row"$'\n'
    if [ $status -eq 0 ]; then
        rm "$log"
    else
        failed=1
        tail -n 20 "$log"
    fi
done
{
    echo "# First minutes on a ${tiny:+CPU or }GPU${tiny:+, at tiny size}"
    echo
    echo "| part | result | seconds | limit | last line |"
    echo "|---|---|---|---|---|"
    echo "$rows"
    grep -vE "^(project|runs|cache of data) " "$VMAE_LAB_PROJECT/info.txt" 2>/dev/null | sed "s/^/    /"
} >"$out/first_gpu.md"
exit $failed

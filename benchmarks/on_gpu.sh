#!/usr/bin/env bash
# What this project asks of a GPU, in one go of a quarter of an hour: the tests that want CUDA, stage 1 of the small model
# (two seeds side by side, on the encoders in runs/tiny), and what a step of training costs at full size.
#
#     bash benchmarks/on_gpu.sh RESULTS SECONDS
#
# Stops after so many seconds; started again it goes on with what is missing. RESULTS gets figures, logs and weights.
set -u
results=$1
end=$((SECONDS + $2))
python=${PYTHON:-python3}
size=${SIZE:-full}            # of the benchmark
train_flags=${TRAIN_FLAGS:-}  # for a rehearsal on something smaller
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
state=runs/on_gpu
mkdir -p "$state" "$results"

# stage NAME SECONDS COMMAND...: run a command once, if so many seconds are left for it.
stage() {
    [ -e "$state/$1.done" ] && return 0
    if ((SECONDS + $2 > end)); then
        echo "$1: no time left"
        return 1
    fi
    local start=$SECONDS
    if "${@:3}" >"$state/$1.log" 2>&1; then
        touch "$state/$1.done"
        echo "$1: $((SECONDS - start)) s"
    else
        echo "$1: FAILED after $((SECONDS - start)) s"
        tail -n 5 "$state/$1.log"
        return 1
    fi
}

draw_clips() {
    $python -c 'from training.data.prepared import load_prepared
for split in ("train", "validation"): load_prepared("procedural", split)'
}

# The cache by many processes, each of which takes a share of the frames.
make_cache() {
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 $python -m accelerate.commands.launch --multi_gpu --num_processes "${PROCESSES:-12}" \
        training/train.py --preset tiny --max_train_steps 1 --validation_steps none --output_dir "$state/cache" $train_flags
}

# train SEED FOLDER: in a session of its own, which outlives this script.
train() {
    OMP_NUM_THREADS=1 setsid nohup $python training/train.py --preset tiny --train_batch_size 32 --seed "$1" \
        --output_dir "$2" --channels_last false --dataloader_num_workers 4 --checkpointing_steps 2000 $train_flags \
        >>"$2.log" 2>&1 &
}

# Seconds until a run's end by its log, or nothing yet.
seconds_left() {
    $python - "$1/log.jsonl" <<'PYTHON' 2>/dev/null
import json, sys
record = [row for row in map(json.loads, open(sys.argv[1])) if "samples_per_second" in row][-1]
print(int((12_000 - record["step"]) * 32 / record["samples_per_second"]))
PYTHON
}

# The first seed is to be done in time; the second goes if it keeps it from that.
train_both() {
    local left
    mkdir -p runs/tiny
    [ -e runs/tiny/stage1/model_index.json ] && return 0
    pgrep -f "train.py --preset tiny .*--output_dir runs/tiny/stage1 " >/dev/null || train 0 runs/tiny/stage1
    pgrep -f "train.py .*seed_1" >/dev/null || [ -e "$state/second" ] || train 1 runs/tiny/stage1_seed_1
    touch "$state/second"
    sleep 40
    while pgrep -f "train.py --preset tiny .*--output_dir runs/tiny/stage1" >/dev/null; do
        ((SECONDS > end - 15)) && return 1
        left=$(seconds_left runs/tiny/stage1)
        echo "$SECONDS s: ${left:-?} s to go"
        if [ "${left:-0}" -gt "${TRAINING_SECONDS:-330}" ]; then
            pkill -f "train.py .*seed_1" && echo "the second seed is left out"
        fi
        sleep 10
    done
    [ -e runs/tiny/stage1/model_index.json ]
}

pack() {
    for run in stage1 stage1_seed_1; do
        [ -e "runs/tiny/$run/model_index.json" ] || continue
        tar czf - --exclude="checkpoint*" -C runs/tiny "$run" | split -b 15000000 - "$results/$run.tgz."
    done
}

step_cost() {
    $python -m benchmarks.training_step --size "$size" --mixed_precision bf16 --steps 8 --repeats 3 --num_workers 1 \
        --output "$results/training_step_${size}_cuda$1.json" "${@:2}"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
stage tests 30 $python -m pytest -q -p no:cacheprovider -n 6 --durations 0 tests/test_cuda.py &
stage draw 30 draw_clips && stage pipeline 30 $python training/train_encoders.py --preset tiny_pipeline &&
    stage cache 60 make_cache
wait
stage training 60 train_both && stage pack 10 pack
if [ -e "$state/training.done" ]; then  # the GPU is free
    stage step_cost 60 step_cost "" --batch_size 8
    stage step_cost_checkpointing 60 step_cost _checkpointing --batch_size 8 --gradient_checkpointing
    stage step_cost_smallest 60 step_cost _smallest --batch_size 1 --gradient_checkpointing --use_8bit_adam
fi
tar czf "$results/logs.tgz" "$state"/*.log runs/tiny/*.log runs/tiny/*/log.jsonl
echo "$SECONDS s in all"

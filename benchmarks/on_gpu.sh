#!/usr/bin/env bash
# What this project asks of a GPU, in one go: the tests that want CUDA, stage 1 of the small model on the encoders in
# runs/tiny/vae and runs/tiny/image_encoder, and what a step of training costs at full size.
#
#     bash benchmarks/on_gpu.sh RESULTS SECONDS
#
# RESULTS gets figures, logs and weights. It stops after about so many seconds, while stage 1 goes on by itself; started
# again it takes up what is missing.
set -u
results=$1
end=$((SECONDS + $2))
python=${PYTHON:-python3}
size=${SIZE:-full}            # of the benchmark
train_flags=${TRAIN_FLAGS:-}  # for a rehearsal on something smaller
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
state=runs/on_gpu
mkdir -p "$state" "$results" runs/tiny

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

# By many processes of the CPU, each of which takes a share of the frames.
make_cache() {
    CUDA_VISIBLE_DEVICES= ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 \
        $python -m accelerate.commands.launch --multi_gpu --num_processes "${PROCESSES:-12}" training/train.py \
        --preset tiny $train_flags --max_train_steps 1 --validation_steps none --output_dir "$state/cache"
}

# In a session of its own, which outlives this script. The batch is that of the preset's two processes.
train() {
    local run="training/train.py --preset tiny --train_batch_size 64 --gradient_accumulation_steps 1"
    [ -e runs/tiny/stage1/model_index.json ] && return 0
    pgrep -f "$run" >/dev/null || OMP_NUM_THREADS=1 setsid nohup $python $run --channels_last false \
        --dataloader_num_workers 4 --checkpointing_steps 1000 $train_flags >>runs/tiny/stage1.log 2>&1 &
    sleep 1
    while pgrep -f "$run" >/dev/null; do
        ((SECONDS > end - 15)) && return 1
        sleep 5
    done
    [ -e runs/tiny/stage1/model_index.json ]
}

pack() {
    tar czf - --exclude="checkpoint*" -C runs/tiny stage1 | split -b 15000000 - "$results/stage1.tgz."
}

step_cost() {
    $python -m benchmarks.training_step --size "$size" --mixed_precision bf16 --steps 8 --repeats 3 --num_workers 1 \
        --batch_size 8 --output "$results/training_step_${size}_cuda$1.json" "${@:2}"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
stage tests 30 $python -m pytest -q -p no:cacheprovider -n 6 --durations 0 tests/test_cuda.py &
stage draw 30 draw_clips && stage pipeline 30 $python training/train_encoders.py --preset tiny_pipeline &&
    stage cache 60 make_cache
wait
stage training 60 train && stage pack 10 pack
if [ -e "$state/training.done" ]; then  # the GPU is free
    stage step_cost 100 step_cost ""
    stage step_cost_checkpointing 100 step_cost _checkpointing --gradient_checkpointing
    stage memory 40 $python -m benchmarks.training_memory --output "$results/training_memory_${size}_cuda.json"
fi
tar czf "$results/logs.tgz" "$state"/*.log runs/tiny/stage1.log runs/tiny/stage1/log.jsonl
echo "$SECONDS s in all"

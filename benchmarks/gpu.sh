#!/bin/bash
# What a GPU is worth here: whether it computes what the CPU does, how fast training is, and Pong in minutes.
#
#     benchmarks/gpu.sh                        one GPU, 13 minutes; results in gpu-results/
#     benchmarks/gpu.sh check train            some parts
#     DEVICE=cpu benchmarks/gpu.sh             the same without a GPU, and smaller, to try this script
#
# Parts: check (500 updates of 2 agents beside the CPU's), train, learners (V-trace without and with a lag, PPO) and agents
# (`gala_mpi.bench`), profile (the kernels of an update), pong (4 agents × 64 environments until the averaged policy scores 18,
# or for MINUTES). What a part printed is in FOLDER/PART.txt. Each has a time limit; one that went well is not done again.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python3} FOLDER=${FOLDER:-gpu-results} PYTHONUNBUFFERED=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
if [ "$DEVICE" = cpu ]; then
    export MINUTES=${MINUTES:-1} AGENTS=2 MOST_AGENTS=2 ENVS=16 UPDATES=20 TURN=2 RANKS=1 CHUNKS=2 TESTS="gala-gossip"
    export PRECISION=fp32 PPO_STEPS=8
else
    export MINUTES=${MINUTES:-4} AGENTS=4 MOST_AGENTS=8 ENVS=64 UPDATES=${UPDATES:-200} TURN=6 RANKS="2" CHUNKS=${CHUNKS:-3} TESTS=""
    export PRECISION=bf16 PPO_STEPS=128
fi

check() {
    $PYTHON -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")'
    for n in $RANKS; do
        mpirun -n "$n" "$PYTHON" -m pytest -q -rP -p no:cacheprovider tests/mpi/test_cuda.py -k "$TESTS" || return
    done
}

train() {
    for network in gala nature; do for precision in fp32 bf16; do
        mpirun -n 1 "$PYTHON" -m gala_mpi.bench train --device "$DEVICE" --network $network --precision $precision \
            --num-envs "$ENVS" --rounds 1 --updates "$UPDATES" || return
    done; done
}

learners() {
    for flags in "--learner vtrace --lag 0" "--learner vtrace --lag 1" "--learner ppo --rollout-length $PPO_STEPS"; do
        mpirun -n 1 "$PYTHON" -m gala_mpi.bench train --device "$DEVICE" --network nature --precision "$PRECISION" \
            --num-envs "$ENVS" --rounds 1 --updates $((UPDATES / 10)) $flags || return
    done
}

agents() {
    mpirun -n "$MOST_AGENTS" "$PYTHON" -m gala_mpi.bench agents --device "$DEVICE" --num-envs 16 --rounds 1 --seconds "$TURN"
}

profile() {
    mpirun -n 1 "$PYTHON" benchmarks/profile_update.py --device "$DEVICE" --num-envs "$ENVS" --updates "$UPDATES"
}

pong() {
    local run=$FOLDER/pong chunk score status resume=--no-resume
    chunk=$("$PYTHON" -c "print($MINUTES / $CHUNKS)")
    for _ in $(seq "$CHUNKS"); do
        [ ! -e "$run/run.h5" ] || resume=--resume
        mpirun -n "$AGENTS" "$PYTHON" -m gala_mpi.train --env pong --device "$DEVICE" --num-envs "$ENVS" --run-dir "$run" $resume \
            --wall-minutes "$chunk"
        status=$?
        [ $status = 75 ] || [ $status = 0 ] || return $status
        mpirun -n "$AGENTS" "$PYTHON" -m gala_mpi.evaluate "$run" --policies mean | tee "$FOLDER/score.txt" || return
        score=$(sed -nE 's/.*mean of all agents[^0-9-]*(-?[0-9.]+).*/\1/p' "$FOLDER/score.txt")
        ! "$PYTHON" -c "exit($score < 18)" || break
    done
    "$PYTHON" analysis/report.py "$run" --out "$FOLDER/pong.html"
}

declare -A LIMIT=([check]=240 [train]=150 [learners]=120 [agents]=240 [profile]=90 [pong]=$((${MINUTES%.*} * 60 + 240)))
export -f check train learners agents profile pong
mkdir -p "$FOLDER" || exit
failed=0
for part in "${@:-check train learners agents profile pong}"; do for part in $part; do
    [ ! -e "$FOLDER/$part.done" ] || continue
    [ -n "${LIMIT[$part]:-}" ] || { echo "$part: one of ${!LIMIT[*]} is expected" >&2; exit 2; }
    echo "== $part (at most ${LIMIT[$part]} s)"
    began=$SECONDS
    if timeout -k 10 "${LIMIT[$part]}" bash -c "set -uo pipefail; $part" 2>&1 | tee "$FOLDER/$part.txt"; then
        touch "$FOLDER/$part.done"
    else
        failed=1
        echo "$part failed: see $FOLDER/$part.txt" >&2
    fi
    echo "== $part: $((SECONDS - began)) s"
done; done
exit $failed

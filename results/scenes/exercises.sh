#!/usr/bin/env bash
# What exercises 4 to 6 of the README come to, in exercises.txt: a script with one line changed, read from stdin. Some twenty
# minutes on two cores; from the repository's root:
#     bash results/scenes/exercises.sh [python [456A]] > results/scenes/exercises.txt
set -e
python=${1:-.venv/bin/python} only=${2:-456A} runs=$(mktemp -d) n=0
no_stop="s/, z.detach()/, z/" no_predictor="s/return z, self.predictor(z)/return z, z/"
trap 'rm -r "$runs"' EXIT
train() {  # a title, what is changed (for sed), the script, its options: how the epochs end, and the probe on held-out categories
  [[ $only == *$exercise* ]] || return 0
  echo "$1"
  n=$((n + 1))
  sed "$2" "$3" | "$python" - "${@:4}" --out "$runs/$n" > "$runs/output.txt"
  "$python" - "$runs/$n/log.jsonl" << 'EOF'
import json, sys

ends = {line["epoch"]: line for line in map(json.loads, open(sys.argv[1]))}.values()
for name in "loss", "embedding_std", "effective_rank":
    print(f"  {name:15}", *(f"{line[name]:5.2f}" for line in ends))
EOF
  grep "linear probe  scenes-held-out" "$runs/output.txt"
}
"$python" -c 'import torch, evaluate; d = torch.device("cpu"); print("seed 0, torch", torch.__version__, "on a CPU, in", evaluate.usual_precision(d))'
exercise=4
train "4. simclr.py --pairs semantic, by epoch" "" simclr.py --pairs semantic
train "   without the projector's last BatchNorm" "/BatchNorm1d(projection_dim)/d" simclr.py --pairs semantic
exercise=5
train "5. simsiam.py --pairs augmented --epochs 2" "" simsiam.py --pairs augmented --epochs 2
train "   without the stop-gradient" "$no_stop" simsiam.py --pairs augmented --epochs 2
exercise=6
train "6. byol.py --pairs augmented --epochs 2" "" byol.py --pairs augmented --epochs 2
train "   without the predictor" "$no_predictor" byol.py --pairs augmented --epochs 2
train "   simsiam.py without the predictor" "$no_predictor" simsiam.py --pairs augmented --epochs 2
exercise=A  # 5 and 6 again, for all epochs
export OMP_NUM_THREADS=1
train "All epochs, one thread: simsiam.py --pairs augmented without the stop-gradient" "$no_stop" simsiam.py --pairs augmented
train "   simsiam.py without the predictor" "$no_predictor" simsiam.py --pairs augmented
train "   byol.py without the predictor" "$no_predictor" byol.py --pairs augmented

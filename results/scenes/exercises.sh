#!/usr/bin/env bash
# What exercises 4 and 5 of the README come to, in exercises.txt: a script with one line taken out, read from stdin. Minutes on two
# cores; from the repository's root:
#     bash results/scenes/exercises.sh [python] > results/scenes/exercises.txt
set -e
python=${1:-.venv/bin/python} runs=$(mktemp -d) n=0
trap 'rm -r "$runs"' EXIT
train() {  # a title, what is changed (for sed), the script, its options: how the epochs end, and the probe on held-out categories
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
"$python" -c 'import torch, evaluate; d = torch.device("cpu"); print("seed 0, torch", torch.__version__, "on a CPU, in", "bf16" if evaluate.multiplies_in_bf16(d) else "float32")'
train "4. simclr.py --pairs semantic, by epoch" "" simclr.py --pairs semantic
train "   without the projector's last BatchNorm" "/BatchNorm1d(projection_dim)/d" simclr.py --pairs semantic
train "5. simsiam.py --pairs augmented --epochs 2" "" simsiam.py --pairs augmented --epochs 2
train "   without the stop-gradient" "s/, z.detach()/, z/" simsiam.py --pairs augmented --epochs 2

#!/usr/bin/env bash
# The measurements of results/speed/README.md's On a GPU, those still missing too, one part a call. DIR holds
# CIFAR-10 as JPEGs, DIR/train/<class>/ and DIR/test/<class>/. From the repository's root:
#     .venv/bin/python -m pytest -q tests/test_gpu.py              -> does it compute what a CPU computes? (-k "not compiles": quicker)
#     bash results/speed/gpu.sh .venv/bin/python DIR bench              -> results/speed/bench-gpu.json, .txt
#     bash results/speed/gpu.sh .venv/bin/python DIR simclr --compile   -> results/speed/cifar10-gpu/simclr/
#     bash results/speed/gpu.sh .venv/bin/python DIR simsiam --compile                       (and byol, moco)
# Further words are options of the bench or the method: of the bench, as all of it takes long, "--only augment step epoch methods
# --methods simclr --seconds 1 --compile"; of a method, to try it, "--device cpu --epochs 1 --limit 512". TO=FOLDER takes another
# folder than results/speed, whose earlier results would be replaced; LIMIT=480 interrupts after so many seconds, and what the log
# has by then is kept.
set -eo pipefail
python=$1 data=$2 part=$3 to=${TO:-results/speed}
shift 3
export PYTHONUNBUFFERED=1
mkdir -p "$to"
if [ "$part" = bench ]; then
  timeout -s INT -k 20 "${LIMIT:-0}" "$python" tests/bench.py --device cuda --workers 16 --out "$to/bench-gpu.json" "$@" | tee "$to/bench-gpu.txt"
  exit
fi
start=$(date +%s) status=0
run=runs/gpu-$part-$start to=$to/cifar10-gpu/$part
mkdir -p "$to"
timeout -s INT -k 20 "${LIMIT:-0}" "$python" "$part.py" --pairs augmented --data "$data" --out "$run" --device cuda "$@" | tee "$to/output.txt" || status=$?
rm -f "$to"/{config.json,log.jsonl,result.json}  # of an earlier run
for file in config.json log.jsonl result.json; do  # the last is missing after an interruption
  [ ! -e "$run/$file" ] || cp "$run/$file" "$to"
done
echo "$(sed -n '$s/.*"seconds": \([0-9]*\).*/\1/p' "$run/log.jsonl") seconds of training, $(($(date +%s) - start)) from the command to its table" | tee -a "$to/output.txt"
exit $status

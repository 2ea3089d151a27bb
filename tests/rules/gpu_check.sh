#!/usr/bin/env bash
# gpu_check.sh ROOT: tools/gpu-check on a machine that only plays a GPU: what it counts, compares with the goals, and keeps of the page.
set -euo pipefail
root=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin" "$work/programs"
program() { { echo '#!/usr/bin/env bash'; cat; } >"$1"; chmod +x "$1"; }  # FILE, its text on stdin

program "$work/bin/nvidia-smi" <<<'echo "NVIDIA H200, 580.65.06, 143771 MiB, 1980 MHz"'
program "$work/bin/compute-sanitizer" <<'END'
[[ "$1 $3" == "--tool --error-exitcode" ]] && "${@:5}"
echo "========= ERROR SUMMARY: 0 errors"
END
# Every program of the suite; two are for the emulator alone.
suite=$(grep -rhoE 'weft_test\([a-z_]+ LABELS [a-z ]*cuda' "$root/tests" --include=CMakeLists.txt | sed -E 's/weft_test\(([a-z_]+).*/\1/' |
  grep -vxE 'emulator_test|device_fault_test')
for name in core_test $suite; do
  program "$work/programs/$name" <<'END'
printf '%s\n' 'x_test.cpp:7: Skipped' 'two GPUs are needed' '' '[  SKIPPED ] X.Y (0 ms)' '[  PASSED  ] 11 tests.' '[  SKIPPED ] 1 test, listed below:' '[  SKIPPED ] X.Y'
END
done
program "$work/programs/context_device_test" <<'END'
printf '%s\n' 'ring on one GPU: zigzag, error 1e-3' 'NCCL of one rank: started in 9 ms' 'x_test.cpp:7: Skipped' 'two GPUs are needed' '' '[  SKIPPED ] X.Y (0 ms)' '[  PASSED  ] 11 tests.' '[  SKIPPED ] 1 test, listed below:' '[  SKIPPED ] X.Y'
END
program "$work/programs/weft" <<'END'
case "$1 $2" in
  "doctor "*) echo "devices       cuda:0 NVIDIA H200, compute capability 9.0" ;;
  "bench gemm") cat <<'TABLE' ;;
name         shape            dtype  threads   value  unit      limit  ratio  best route  of peak
square       8192x8192x8192   bf16        16  700000  GFLOP/s  710000  0.986  cuBLASLt    0.99
qkv forward  16384x1024x3072  bf16        16  600000  GFLOP/s  625000  0.960  cuBLASLt    0.81
TABLE
  "bench attention") cat <<'TABLE' ;;
name              shape              dtype  threads   value  unit      limit  ratio  time  of cuDNN            of wgmma  of plain  peak
forward           B1 H16 d128 T8192  bf16        16  400000  GFLOP/s  710000  0.563  1 ms  0.75                0.9
backward          B1 H16 d128 T8192  bf16        16  200000  GFLOP/s  710000  0.282  2 ms  no engine for it    0.9
forward softcap   B1 H16 d128 T8192  bf16        16  360000  GFLOP/s  710000  0.513  1 ms                      0.9       0.91
backward softcap  B1 H16 d128 T8192  bf16        16  170000  GFLOP/s  710000  0.242  2 ms                      0.9       0.86
memory            B1 H1 d64 T4096    f32         16     276  B/token     276  1.000                                                1.1 MB
TABLE
  "bench train") cat <<'TABLE' ;;
name  shape                          dtype  threads   value  unit      limit  ratio  tokens/s  problem
step  L24 d1024 h16 T4096 V50304 B4  bf16        16   0.000  GFLOP/s  710000  0.000            tensor [4]: out of memory: 9 bytes
step  L8 d512 h8 T1024 V8192 B4      bf16        16  150000  GFLOP/s  710000  0.211  500000
TABLE
  "bench memory") echo "error: bench memory: element 7 is wrong"; exit 1 ;;
  "train "*)
    while [[ $1 != --run ]]; do [[ $1 == seed=* ]] && seed=${1#seed=}; [[ $1 == train.device=cuda ]] && more=1; shift; done
    mkdir -p "$2"
    echo "{\"kind\":\"val\",\"step\":9,\"val/loss\":1.5$seed${more:-0}}" >"$2/metrics.jsonl" ;;
esac
END

page=$work/page.md
printf '%s\n' 'by hand, above' '<!-- gpu-check: begin -->' 'of an earlier run' '<!-- gpu-check: end -->' 'by hand, below' >"$page"
echo text >"$work/text.txt"
failed=0
wants() { grep -qF -- "$2" "$1" || { echo "not in $1: $2"; failed=1; }; }
check() { (cd "$work" && PATH=$work/bin:$PATH bash "$root/tools/gpu-check" --no-build programs --out page.md --log log "$@") >"$work/said.txt" 2>&1; }

check --text text.txt && { echo "a benchmark that ended with an error has passed"; failed=1; }
for line in \
  'ring on one GPU: zigzag, error 1e-3' 'NCCL of one rank: started in 9 ms' 'by hand, above' 'by hand, below' 'devices       cuda:0 NVIDIA H200' '580.65.06' \
  '| core_test | passed | 11 passed, 1 skipped | ' '| memcheck device_test | passed | 11 passed, 1 skipped, ERROR SUMMARY: 0 errors | ' \
  "$(( 1 + $(wc -w <<<"$suite") + 6 + 6 )) skipped: two GPUs are needed" '| bench memory | FAILED (1) | ' \
  'called directly | 0.97 | 0.960 (qkv forward 16384x1024x3072); 0.81 to 0.99 of the peak | no |' \
  '| 0.55 | 0.563 (B1 H16 d128 T8192); with wgmma 0.626 | yes |' '| 0.38 | 0.282 (B1 H16 d128 T8192); with wgmma 0.313 | no |' \
  "forward: share of cuDNN's speed | 0.8 | 0.75 (B1 H16 d128 T8192) | no |" \
  '| 0.8 |  B1 H16 d128 T8192: no engine for it. | not measured |' \
  'per unmasked FLOP | 0.85 | 0.86 (backward softcap B1 H16 d128 T8192) | yes |' 'copy bandwidth | 0.8 |  | not measured |' \
  '| 0.45 |  L24 d1024 h16 T4096 V50304 B4: tensor [4]: out of memory: 9 bytes. | not measured |' \
  '| at most 0.02 | +0.0010 | yes |' '| cuda | 1.511 | 1.521 | 1.531 | 1.5210 |'; do
  wants "$page" "$line"
done
for name in $suite; do wants "$page" "| $name | passed | "; done
grep -q 'of an earlier run' "$page" && { echo "the earlier run is still there"; failed=1; }

cp "$page" "$work/first.md"

rm "$work/programs/golden_device_test"
check --steps tests && { echo "a missing program has passed"; failed=1; }
wants "$page" '| golden_device_test | NOT RUN: not in '
if [[ ! -x /usr/local/cuda/bin/compute-sanitizer ]]; then
  rm "$work/bin/compute-sanitizer"
  if ! command -v compute-sanitizer >/dev/null; then
    check --steps racecheck && { echo "a missing sanitizer has passed"; failed=1; }
    wants "$page" '| racecheck | NOT RUN: no compute-sanitizer | '
  fi
fi
echo 'by hand' >"$page"
check --steps bench && { echo "a page without comments was taken"; failed=1; }
wants "$work/said.txt" "page.md has no lines '<!-- gpu-check: begin -->'"
[[ $(<"$page") == 'by hand' ]] || { echo "a page without comments was written"; failed=1; }

# Tables of a CPU carry their goals.
cat >"$work/bench train.txt" <<'TABLE'
cpu AMD EPYC; kernels avx512; command weft bench train --runs 3

name                     shape                      dtype  threads   value  unit     limit  ratio  lowest  highest  goal  goal of other  tokens/s  peak MiB 4  % other
step                     L6 d384 h6 T512 V8192 B4   f32          2     200  GFLOP/s    233  0.858  0.841   0.860    0.85                 2000                  14
step                     L4 d128 h4 T256 V256 B16   f32          2     160  GFLOP/s    233  0.687  0.680   0.702    0.75  10             9000                  21.5
step of 4 micro-batches  L6 d384 h6 T512 V8192 B4   f32          2     308  MiB        308  1.000  1.000   1.000                                   308
TABLE
awk -v device=cpu -f "$root/tools/bench/goals.awk" "$work/bench train.txt" >"$work/cpu.md"
for line in '| step | L6 d384 h6 T512 V8192 B4 | f32 | 0.85 | 0.858 (0.841 to 0.860) | yes |' \
  '| step | L4 d128 h4 T256 V256 B16 | f32 | 0.75 | 0.687 (0.680 to 0.702) | no |' \
  '| step: % other | L4 d128 h4 T256 V256 B16 | f32 | at most 10 | 21.5 | no |'; do
  wants "$work/cpu.md" "$line"
done
(( $(wc -l <"$work/cpu.md") == 3 )) || { echo "rows without a goal were compared"; failed=1; }
(( ! failed )) || cat "$work/first.md" "$work/said.txt"
exit $failed

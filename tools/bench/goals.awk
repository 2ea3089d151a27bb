# awk -f goals.awk "DIR/bench NAME.txt"...: rows of a table that sets what `weft bench NAME --device cuda` printed beside the goals for a GPU.
# Measured is the worst of the rows that a goal is about.
# awk -v device=cpu -f goals.awk FILE...: the same of what was printed with a column of goals, row by row. What was printed with --runs has the
# lowest and highest ratio behind the middle one.
BEGIN {
  FS = "  +"
  if (device != "cpu") gpu_goals()
}

function gpu_goals(   width) {
  goal("gemm", 0.97, "matrix products, bf16: share of cuBLASLt called directly")
  for (width = 128; width >= 64; width -= 64) {
    goal("forward" width, width == 128 ? 0.55 : 0.42, "attention, causal, width " width ", forward: share of the GEMM peak" (width == 128 ? " (first 0.35)" : ""))
    goal("backward" width, width == 128 ? 0.38 : 0.30, "the same, backward" (width == 128 ? " (first 0.22)" : ""))
    goal("forward" width "cudnn", 0.8, "the same, forward: share of cuDNN's speed")
    goal("backward" width "cudnn", 0.8, "the same, backward: share of cuDNN's speed")
  }
  goal("variants", 0.85, "attention with window, documents, soft cap, ALiBi: share of plain per unmasked FLOP")
  goal("memory", 0.8, "norms, rotary, SwiGLU, AdamW: share of the copy bandwidth")
  goal("train", 0.45, "training step, about 350 M parameters, T = 4096, bf16: share of the GEMM peak (MFU)")
}

function goal(name, least, text) { names[++count] = name; leasts[name] = least; texts[name] = text }

# The worst of a goal's rows; what is no number is why there is none.
function take(name, value, row) {
  if (value !~ /^[0-9.]+$/) { if (value != "") why[name] = why[name] " " row ": " value "."; return }
  if (!(name in worst) || value + 0 < worst[name] + 0) { worst[name] = value; of[name] = row }
}

# The text of a further column, which stands under its heading.
function cell(heading,   at, text) {
  at = index(header "  ", "  " heading "  ")
  if (!at) return ""
  text = substr($0, at + 2)
  sub(/  .*/, "", text)
  sub(/ $/, "", text)
  return text
}

FNR == 1 { bench = FILENAME; sub(/.*bench /, "", bench); sub(/\.txt$/, "", bench); header = "" }
$1 == "name" && $2 == "shape" { header = $0; next }
header == "" { next }
device == "cpu" {
  least = cell("goal")
  spread = cell("lowest") == "" ? "" : " (" cell("lowest") " to " cell("highest") ")"
  if (least != "") printf "| %s | %s | %s | %s | %s%s | %s |\n", $1, $2, $3, least, $8, spread, $8 + 0 < least + 0 ? "no" : "yes"
  most = cell("goal of other")
  if (most != "") printf "| %s: %% other | %s | %s | at most %s | %s | %s |\n", $1, $2, $3, most, cell("% other"), (cell("% other") + 0 > most + 0 ? "no" : "yes")
  next
}
bench == "gemm" && $3 == "bf16" {
  take("gemm", $8, $1 " " $2)
  share = cell("of peak")
  if (share != "" && (low == "" || share + 0 < low + 0)) low = share
  if (share != "" && share + 0 > high + 0) high = share
  notes["gemm"] = "; " low " to " high " of the peak"
}
bench == "attention" && $3 == "bf16" && ($1 == "forward" || $1 == "backward") {
  name = $1 ($2 ~ / d128 / ? 128 : 64)
  take(name, $8, $2)
  take(name "cudnn", cell("of cuDNN"), $2)
  if (cell("of wgmma") ~ /^[0-9.]+$/ && cell("of wgmma") > 0) notes[name] = sprintf("; with wgmma %.3f", $8 / cell("of wgmma"))
}
bench == "attention" && $3 == "bf16" { take("variants", cell("of plain"), $1 " " $2) }
bench == "memory" { take("memory", $8, $1 " " $2 " " $3) }
bench == "train" && $3 == "bf16" && $2 ~ / d1024 / {
  take("train", cell("problem") == "" ? $8 : cell("problem"), $2)
}

END {
  for (i = 1; i <= count; ++i) {
    name = names[i]
    if (name in worst)
      printf "| %s | %s | %s (%s)%s%s | %s |\n", texts[name], leasts[name], worst[name], of[name], notes[name],
        why[name] == "" ? "" : ";" why[name], worst[name] + 0 < leasts[name] ? "no" : "yes"
    else printf "| %s | %s | %s | not measured |\n", texts[name], leasts[name], why[name]
  }
}

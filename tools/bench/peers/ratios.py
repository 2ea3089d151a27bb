"""Weft beside PyTorch, measured in turn: the ratio tables of docs/performance.md. Not needed to build, run or test Weft.

    python tools/bench/peers/ratios.py [--weft build/release/weft] [--threads 2] [--rounds 3] [--quick] [--only train|attention|recurrence]

Run it with a Python that has PyTorch, on a machine where nothing else runs. PyTorch is warm, and compiled where it says so, before the
first round; then in each round every side is measured once, in another order each time. Tables hold medians over the rounds; the spread is the lowest and
highest ratio of a round. Beside a ratio stands its goal, where it has one. Takes a quarter of an hour; --quick leaves out the L8
model, and of the masks all but the window.
"""
import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys

from rows import ATTENTION_SHAPE, DIRECTIONS, STEPS, find, step_shape

# Weft over the faster of PyTorch's two, by model and dtype.
STEP_GOALS = {("L8", "f32"): 1.4, ("L6", "f32"): 1.33, ("L4", "f32"): 1.6,
              ("L8", "bf16"): 1.35, ("L6", "bf16"): 1.6, ("L4", "bf16"): 2.25}
# PyTorch's time over Weft's, forward and backward together; forward alone where PyTorch has no backward.
ATTENTION_GOALS = {"": 1.5, "window 512": 3, "documents 512": 3}

HERE = os.path.dirname(os.path.abspath(__file__))


class Peer:
    """A PyTorch process that waits until it is asked to measure."""

    def __init__(self, script, args):
        command = [sys.executable, os.path.join(HERE, script), "--serve", *args]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"ratios: {' '.join(self.process.args)} ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, text=""):
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def weft(args, *words):
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads))
    return json.loads(subprocess.run([args.weft, "bench", *words, "--quick", "--json"], env=env, check=True,
                                     stdout=subprocess.PIPE, text=True).stdout)["rows"]


def in_turn(sides, rounds):
    """sides: {name: function}. The values of each side, one per round."""
    values, names = {name: [] for name in sides}, list(sides)
    for i in range(rounds):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            values[name].append(sides[name]())
    return values


def goal_text(goal):
    return f"{goal:.2f}" if goal else ""


def spread(ratios):
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def table(head, lines):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head), flush=True)
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)
    print()


def train_line(args, shape, dtype, rounds):
    steps = {"L8": 2, "L6": 5, "L4": 20}[shape]
    with contextlib.ExitStack() as stack:
        peers = {}
        for mode in ("eager", "compiled"):
            words = ["--threads", str(args.threads), "--dtype", dtype, "--shape", shape]
            peers[mode] = Peer("torch_train.py", words + (["--compile"] if mode == "compiled" else []))
            stack.callback(peers[mode].close)
        flops = peers["eager"].facts["flops"]

        def ours():
            row = find(weft(args, "train", "--rows", f"{shape} {dtype}"), "step", step_shape(shape), dtype)
            limits.append(row["limit"])
            goals.append(row.get("goal", ""))
            return row["value"]

        limits, goals = [], []
        rate = lambda peer: lambda: flops / statistics.median(peer.ask(steps)) / 1e9
        values = in_turn({"weft": ours, **{mode: rate(peer) for mode, peer in peers.items()}}, rounds)
    medians = {name: statistics.median(v) for name, v in values.items()}
    best = max(("eager", "compiled"), key=lambda mode: medians[mode])
    ratios = [w / t for w, t in zip(values["weft"], values[best])]
    of_limit = statistics.median(w / l for w, l in zip(values["weft"], limits))
    return [shape, dtype, *(f"{medians[name]:.1f}" for name in ("eager", "compiled", "weft")), f"{of_limit:.2f}", goals[0],
            f"{medians['weft'] / medians[best]:.2f}", goal_text(STEP_GOALS.get((shape, dtype))), spread(ratios)]


def train_table(args):
    print("GFLOP/s of whole training steps, the models of `weft bench train`:\n")
    shapes = [shape for shape in STEPS if not (args.quick and shape == "L8")]
    lines = (train_line(args, shape, dtype, args.rounds)
             for shape in shapes for dtype in ("f32", "bf16"))  # each is printed when it is measured
    table(["model", "dtype", "PyTorch eager", "PyTorch compiled", "Weft", "of the limit", "goal", "Weft / best PyTorch", "goal", "spread"], lines)


def compare(direction, case, ours, theirs, goal):
    """The line of a table: ours and theirs are ms, one per round."""
    ratio = statistics.median(theirs) / statistics.median(ours)
    return [direction, case["name"] or "plain", case["dtype"], f"{statistics.median(theirs):.1f}", f"{statistics.median(ours):.1f}",
            f"{ratio:.2f}", goal_text(goal), spread([t / m for t, m in zip(theirs, ours)])]


def attention_lines(case, ours, theirs):
    """ours and theirs: {direction: ms, one per round}. A direction that PyTorch does not have has None."""
    goal = ATTENTION_GOALS.get(case["name"])
    has_backward = None not in theirs["backward"]
    yield compare("forward", case, ours["forward"], theirs["forward"], None if has_backward else goal)
    both = [f + b for f, b in zip(ours["forward"], ours["backward"])]
    if has_backward:
        yield compare("backward", case, ours["backward"], theirs["backward"], None)
        yield compare("both", case, both, [f + b for f, b in zip(theirs["forward"], theirs["backward"])], goal)
        return
    for direction, mine in (("backward", ours["backward"]), ("both", both)):
        yield [direction, case["name"] or "plain", case["dtype"], f"none, because {case['problem']}", f"{statistics.median(mine):.1f}",
               "", "", ""]


def attention_table(args):
    peer = Peer("torch_attention.py", ["--threads", str(args.threads), "--seconds", "0.5"] + (["--quick"] if args.quick else []))
    rows = in_turn({"weft": lambda: weft(args, "attention"), "torch": peer.ask}, args.rounds)
    peer.close()
    print(f"Attention, {ATTENTION_SHAPE}, causal, ms; PyTorch's plain rows are scaled_dot_product_attention, the others flex_attention compiled:\n")
    lines = []
    for i, case in enumerate(rows["torch"][0]):
        mine = lambda round, direction: find(round, f"{direction} {case['name']}".strip(), ATTENTION_SHAPE, case["dtype"])
        ours = {d: [float(mine(r, d)["time"].split()[0]) for r in rows["weft"]] for d in DIRECTIONS}
        theirs = {d: [r[i][d] for r in rows["torch"]] for d in DIRECTIONS}
        lines += attention_lines(case, ours, theirs)
    table(["direction", "row", "dtype", "PyTorch", "Weft", "PyTorch / Weft", "goal", "spread"], lines)


def recurrence_table(args):
    """Goals: plain 2 times as fast as PyTorch, forward and backward together, delta and a decay per channel 3 times."""
    peer = Peer("torch_recurrence.py", ["--threads", str(args.threads), "--rounds", "3"])
    shape = "B1 H8 d64 T4096"

    def ours():
        return {row["name"].removeprefix("both "): float(row["time"].split()[0]) for row in weft(args, "recurrence")
                if row["shape"] == shape and row["dtype"] == "f32" and row["name"].startswith("both ") and "time" in row}

    rows = in_turn({"weft": ours, "torch": lambda: peer.ask()}, args.rounds)
    peer.close()
    print(f"Gated linear recurrence, {shape} f32, forward and backward together, ms; PyTorch's is the chunkwise form with its matmuls:\n")
    lines = []
    for i, form in enumerate(rows["torch"][0]):
        mine, theirs = [r[form["name"]] for r in rows["weft"]], [r[i]["both"] for r in rows["torch"]]
        ratio = statistics.median(theirs) / statistics.median(mine)
        goal = 2 if form["name"] == "plain" else 3
        lines.append([form["name"], f"{statistics.median(theirs):.1f}", f"{statistics.median(mine):.1f}", f"{ratio:.2f}",
                      goal_text(goal), spread([t / m for t, m in zip(theirs, mine)])])
    table(["form", "PyTorch", "Weft", "PyTorch / Weft", "goal", "spread"], lines)


def cpu_name():
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", default="build/release/weft", help="the program to measure")
    parser.add_argument("--threads", type=int, default=2, help="of both sides")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured")
    parser.add_argument("--quick", action="store_true", help="two rounds, without the L8 model and most masks")
    parser.add_argument("--only", choices=["train", "attention", "recurrence"], help="one table")
    args = parser.parse_args()
    if args.quick:
        args.rounds = min(args.rounds, 2)
    if args.threads < 1 or args.rounds < 1:
        raise SystemExit("ratios: --threads and --rounds are 1 or more")
    if not os.access(args.weft, os.X_OK):
        raise SystemExit(f"ratios: no program {args.weft}. Build it with tools/build release weft, or name it with --weft")
    try:
        import torch  # here, so that --help works without it
    except ImportError as error:
        raise SystemExit(f"ratios: this Python has no PyTorch ({error}). Run it with one that has: python -m venv DIR; DIR/bin/pip install torch")
    load = os.getloadavg()[0]
    print(f"{cpu_name()}, {args.threads} threads, PyTorch {torch.__version__}, Python {platform.python_version()}, "
          f"{datetime.date.today()}, {args.rounds} rounds, load at the start {load:.1f}. Command: {' '.join(sys.argv)}\n", flush=True)
    for name, print_table in (("train", train_table), ("attention", attention_table), ("recurrence", recurrence_table)):
        if args.only in (None, name):
            print_table(args)


if __name__ == "__main__":
    main()

"""The attention rows of `weft bench attention` in PyTorch, as a peer for docs/performance.md. Not needed to build, run or test Weft.

    python tools/bench/peers/torch_attention.py [--threads 2] [--seconds 2] [--tokens 4096] [--width 64]

B=1, 8 heads, causal. Plain rows are scaled_dot_product_attention in f32 and bf16; window, documents, soft cap and ALiBi are
flex_attention, compiled, in f32. Prints the best time of forward, and of backward alone, in ms. Where PyTorch has no backward on the
CPU, the row says so. With --serve it prints a line of JSON when it is warm, and times all rows once for every line of its input.
"""
import argparse
import json
import sys
import time

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from rows import ATTENTION

HEADS = 8
WINDOW = DOCUMENT = 512
CAP, SLOPE = 30.0, 0.01


def causal(b, h, q, k):
    return q >= k


def window(b, h, q, k):
    return (q >= k) & (q - k < WINDOW)


def documents(b, h, q, k):
    return (q >= k) & (q // DOCUMENT == k // DOCUMENT)


def softcap(score, b, h, q, k):
    return CAP * torch.tanh(score / CAP)


def alibi(score, b, h, q, k):
    return score - SLOPE * (q - k)


class Row:
    """One case: times its forward and its backward."""

    def __init__(self, name, dtype, attend, tokens, width):
        self.name, self.dtype, self.attend = name, dtype, attend
        torch_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
        make = lambda: (torch.rand(1, HEADS, tokens, width) * 2 - 1).to(torch_dtype)
        self.q, self.k, self.v, self.dout = make(), make(), make(), make()
        self.problem = ""
        with torch.no_grad():
            self.attend(self.q, self.k, self.v)
        try:
            self.backward_once()
        except Exception as error:  # whatever it raises where a backward is missing
            self.problem = (str(error).splitlines() or [type(error).__name__])[0]

    def backward_once(self):
        inputs = [x.detach().requires_grad_() for x in (self.q, self.k, self.v)]
        out = self.attend(*inputs)
        begin = time.perf_counter()
        torch.autograd.grad(out, inputs, self.dout)
        return time.perf_counter() - begin

    def forward_once(self):
        with torch.no_grad():
            begin = time.perf_counter()
            self.attend(self.q, self.k, self.v)
            return time.perf_counter() - begin

    def time(self, seconds):
        best = lambda f: min(self.repeat(f, seconds)) * 1e3
        return {"forward": best(self.forward_once), "backward": None if self.problem else best(self.backward_once)}

    @staticmethod
    def repeat(f, seconds):
        times, end = [f()], time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 2:
            times.append(f())
        return times


def rows(tokens, width, is_quick):
    sdpa = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    flex = {"window 512": (window, None), "documents 512": (documents, None), "softcap": (causal, softcap), "alibi": (causal, alibi)}
    for name, dtype in ATTENTION:
        if name == "":
            yield Row(name, dtype, sdpa, tokens, width)
        elif not is_quick or name == "window 512":
            mask, score = flex[name]
            torch._dynamo.reset()
            blocks = create_block_mask(mask, None, None, tokens, tokens, device="cpu")
            compiled = torch.compile(flex_attention)
            attend = lambda q, k, v, b=blocks, s=score, f=compiled: f(q, k, v, block_mask=b, score_mod=s)
            yield Row(name, dtype, attend, tokens, width)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2, help="of a row and direction")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="of the masks only the window")
    parser.add_argument("--serve", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    cases = list(rows(a.tokens, a.width, a.quick))
    measured = lambda: [{"name": r.name, "dtype": r.dtype, "problem": r.problem, **r.time(a.seconds)} for r in cases]
    if a.serve:
        print(json.dumps({"torch": torch.__version__}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(measured()), flush=True)
        return
    for row in measured():
        backward = "no backward: " + row["problem"] if row["problem"] else f"backward {row['backward']:.2f} ms"
        print(f"torch {torch.__version__} {row['name'] or 'plain'} {row['dtype']} {a.threads} threads: "
              f"forward {row['forward']:.2f} ms, {backward}")


if __name__ == "__main__":
    main()

"""The training steps of `weft bench train` in PyTorch, as a peer for docs/performance.md. Not needed to build, run or test Weft.

    python tools/bench/peers/torch_train.py [--threads 2] [--steps 5] [--compile] [--dtype f32|bf16] [--shape L8|L6|L4] [--optimizer fused|foreach]

Same model: pre-LN, GELU (tanh form) of width 4d, learned positions, tied head, no biases in products, fused scaled dot product
attention, cross-entropy over random tokens, gradient norm clipped at 1, AdamW in its fused kernel, PyTorch's fastest on the CPU. bf16 is autocast over float32 weights.
Prints the median time of a step and GFLOP/s by the same count: 6 N + 6 L d (T + 1) per token, N without look-up tables. With
--serve it prints a line of JSON when it is warm, and then runs as many steps as each line of its input says: tools/bench/peers/ratios.py
measures it in turn with others.
"""
import argparse
import json
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

from rows import STEPS

class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, d // self.heads).transpose(1, 2) for y in self.qkv(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self, layers, dim, heads, tokens, vocab):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocab, dim), nn.Embedding(tokens, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids, targets):
        x = self.embedding(ids) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.embedding.weight.t()
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--shape", choices=list(STEPS), default="L8")
    parser.add_argument("--optimizer", choices=["fused", "foreach"], default="fused")
    parser.add_argument("--serve", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    layers, dim, heads, tokens, vocab, batch = STEPS[a.shape]
    model = Model(layers, dim, heads, tokens, vocab)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **{a.optimizer: True})
    forward = torch.compile(model) if a.compile else model
    ids, targets = torch.randint(vocab, (batch, tokens)), torch.randint(vocab, (batch, tokens))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=a.dtype == "bf16"):
            loss = forward(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def timed_steps(count):
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - begin)
        return seconds

    losses = [step(), step()]
    products = layers * 12 * dim * dim + vocab * dim
    flops = (6 * products + 6 * layers * dim * (tokens + 1)) * batch * tokens
    if a.serve:
        print(json.dumps({"torch": torch.__version__, "flops": flops, "tokens": batch * tokens}), flush=True)
        for line in sys.stdin:
            print(json.dumps(timed_steps(int(line))), flush=True)
        return
    times = timed_steps(a.steps)
    assert losses[-1] < losses[0]
    seconds = statistics.median(times)
    print(f"torch {torch.__version__} {'compiled' if a.compile else 'eager'} {a.shape} {a.dtype} {a.threads} threads: "
          f"{seconds:.3f} s, {flops / seconds / 1e9:.1f} GFLOP/s, {batch * tokens / seconds:.0f} tokens/s")


if __name__ == "__main__":
    main()

"""The gated linear recurrence of `weft bench recurrence` in PyTorch, as a peer for docs/performance.md. Not needed to build, run or test Weft.

    python tools/bench/peers/torch_recurrence.py [--threads 2] [--tokens 4096] [--chunk 64] [--rounds 5] [--serve]

The chunkwise form with its products as batched matmuls: everything inside the chunks for all chunks at once, then the states one after the
other. The delta rule by the WY form with solve_triangular, a decay per key or value channel by sub-chunks of 16 tokens. Their own pairs are matmuls
of factors around the decay of the middle token, which are faster than differences of decays element by element but overflow for decays below
about -10 per token; Weft's forms hold for every decay. Backward is autograd's. Each form is compared with the loop over tokens before it is timed.
B1 H8 d64 f32; prints the best time of forward and of forward + backward.
With --serve it prints a line of JSON when it is warm, and times all forms once for every line of its input.
"""
import argparse
import json
import sys
import time

import torch

HEADS, WIDTH, SUB = 8, 64, 16


def chunks(x, size):
    return x.unflatten(2, (-1, size))  # [B, H, N, C, ...]


def states(write, keep):
    """S_n before each chunk: S_{n+1} = keep_n * S_n + write_n."""
    state, all_states = torch.zeros_like(write[:, :, 0]), []
    for n in range(write.shape[2]):
        all_states.append(state)
        state = keep[:, :, n] * state + write[:, :, n]
    return torch.stack(all_states, 2)


def delta_states(w, u, km, keep):
    """The same for the delta rule, with U_n = u_n - w_n S_n."""
    state, all_states, all_u = torch.zeros_like(km[:, :, 0].mT @ u[:, :, 0]), [], []
    for n in range(u.shape[2]):
        all_states.append(state)
        all_u.append(u[:, :, n] - w[:, :, n] @ state)
        state = keep[:, :, n] * state + km[:, :, n].mT @ all_u[-1]
    return torch.stack(all_states, 2), torch.stack(all_u, 2)


def scores(q, k, G, strict):
    """sum_c q_rc k_ic exp(G_rc - G_ic) for i <= r (i < r if strict); G [..., C, 1] or [..., C, K]."""
    diagonal = -1 if strict else 0
    if G.shape[-1] == 1:
        return (q @ k.mT) * (G - G.mT).tril().exp().tril(diagonal)
    size = q.shape[-2]
    rows = []
    for a in range(0, size, SUB):
        Q, K, g = q[..., a:a + SUB, :], k[..., a:a + SUB, :], G[..., a:a + SUB, :]
        middle = g[..., SUB // 2:SUB // 2 + 1, :]
        own = ((Q * (g - middle).exp()) @ (K * (middle - g).exp()).mT).tril(diagonal)
        parts = [own, torch.zeros(*own.shape[:-1], size - a - SUB)]
        if a > 0:
            first = g[..., :1, :]
            parts.insert(0, (Q * (g - first).exp()) @ (k[..., :a, :] * (first - G[..., :a, :]).exp()).mT)
        rows.append(torch.cat(parts, -1))
    return torch.cat(rows, -2)


def recur(q, k, v, g, beta, size):
    """q, k, v [B, H, T, d], g [B, H, T, 1 or d], beta [B, H, T, 1] or None."""
    q, k, v, g = (chunks(x, size) for x in (q, k, v, g))
    G = g.cumsum(-2)
    last = G[..., -1:, :]
    qp, km, keep = q * G.exp(), k * (last - G).exp(), last.exp().mT
    P = scores(q, k, G, False)
    if beta is None:
        u = v
        S = states(km.mT @ v, keep)
    else:
        b = chunks(beta, size)
        X = torch.eye(size) + b * scores(k, k, G, True)
        wu = torch.linalg.solve_triangular(X, torch.cat([b * k * G.exp(), b * v], -1), upper=False, unitriangular=True)
        S, u = delta_states(wu[..., :k.shape[-1]], wu[..., k.shape[-1]:], km, keep)
    return (qp @ S + P @ u).flatten(2, 3)


def recur_values(q, k, v, g, size):
    """The same with a decay g [B, H, T, d] per value channel, without beta."""
    q, k, v, g = (chunks(x, size) for x in (q, k, v, g))
    G = g.cumsum(-2)
    last = G[..., -1:, :]
    S = states(k.mT @ (v * (last - G).exp()), last.exp())
    P = (q @ k.mT).tril()
    rows = []
    for a in range(0, size, SUB):
        p, own, G_own = P[..., a:a + SUB, :], v[..., a:a + SUB, :], G[..., a:a + SUB, :]
        middle = G_own[..., SUB // 2:SUB // 2 + 1, :]
        y = (p[..., a:a + SUB] @ (own * (middle - G_own).exp())) * (G_own - middle).exp()
        if a > 0:
            first = G_own[..., :1, :]
            y = y + (p[..., :a] @ (v[..., :a, :] * (first - G[..., :a, :]).exp())) * (G_own - first).exp()
        rows.append(y)
    return ((q @ S) * G.exp() + torch.cat(rows, -2)).flatten(2, 3)


def loop(q, k, v, g, beta, side="key"):
    state, out = torch.zeros(q.shape[0], q.shape[1], q.shape[3], v.shape[3], dtype=q.dtype), []
    for t in range(q.shape[2]):
        state = state * g[:, :, t].exp().unsqueeze(-2 if side == "value" else -1)
        u, key = v[:, :, t], k[:, :, t].unsqueeze(-1)
        if beta is not None:
            u = beta[:, :, t] * (u - (key.mT @ state).squeeze(-2))
        state = state + key * u.unsqueeze(-2)
        out.append((q[:, :, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(out, 2)


def inputs(tokens, is_delta, is_channel, dtype=torch.float32):
    shape = (1, tokens, HEADS, WIDTH)  # as a model has them; the forms above take heads in front
    unit = (3 / WIDTH) ** 0.5
    made = [torch.rand(shape, dtype=dtype) * 2 - 1, (torch.rand(shape, dtype=dtype) * 2 - 1) * unit,
            torch.rand(shape, dtype=dtype) * 2 - 1,
            torch.rand(1, tokens, HEADS, WIDTH if is_channel else 1, dtype=dtype) * -0.2]
    if is_delta:
        made.append(torch.rand(1, tokens, HEADS, 1, dtype=dtype))
    return [x.requires_grad_() for x in made]


def heads_first(leaves):
    x = [leaf.transpose(1, 2) for leaf in leaves]
    return x if len(x) == 5 else x + [None]


def best(run, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


class Form:
    """One form of the recurrence: compared with the loop, then ready to be timed."""

    def __init__(self, name, is_delta, side, args):
        self.name, self.rounds, size = name, args.rounds, args.chunk
        of_values = side == "value"
        self.run = (lambda q, k, v, g, beta: recur_values(q, k, v, g, size)) if of_values else (
            lambda *x: recur(*x, size))
        small = heads_first(inputs(3 * size, is_delta, side is not None))
        difference = (self.run(*small) - loop(*small, side or "key")).abs().max().item()
        if difference > 1e-4:
            raise SystemExit(f"{name}: differs from the loop by {difference}")
        self.leaves = inputs(args.tokens, is_delta, side is not None)
        self.dout = torch.rand(1, args.tokens, HEADS, WIDTH)
        self.both()

    def forward(self):
        with torch.no_grad():
            self.run(*heads_first(self.leaves)).transpose(1, 2).contiguous()

    def both(self):
        self.run(*heads_first(self.leaves)).transpose(1, 2).backward(self.dout)
        for leaf in self.leaves:
            leaf.grad = None

    def time(self):
        return {"name": self.name, "forward": best(self.forward, self.rounds) * 1e3, "both": best(self.both, self.rounds) * 1e3}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    forms = [Form(name, is_delta, side, args)
             for name, is_delta, side in [("plain", False, None), ("plain key channels", False, "key"),
                                          ("plain value channels", False, "value"), ("delta", True, None),
                                          ("delta key channels", True, "key")]]
    if args.serve:
        print(json.dumps({"torch": torch.__version__}), flush=True)
        for _ in sys.stdin:
            print(json.dumps([form.time() for form in forms]), flush=True)
        return
    print(f"PyTorch {torch.__version__}, {args.threads} threads, B1 H{HEADS} d{WIDTH} T{args.tokens}, chunks of {args.chunk}")
    for form in forms:
        times = form.time()
        print(f"{form.name:20} forward {times['forward']:8.2f} ms  forward + backward {times['both']:8.2f} ms")


if __name__ == "__main__":
    main()

"""Recurrent mixers of Weft against PyTorch: loops over tokens written from the papers' equations, and the modules of transformers where it has
one. Not needed to build, run or test Weft.

    pip install torch transformers
    python tools/bench/peers/torch_mixers.py build/release/weft [--only NAME] [--keep FOLDER]

For each case `weft train` takes a model of three layers with that mixer a few large steps away from its initial weights, on this file's text.
`weft sample --logits` computes in f32. Here the same model is computed in f64: embedding, RMSNorm, mixer, RMSNorm and SwiGLU in every layer,
RMSNorm, output head. A case that ends in `transformers` takes its mixer from there; parts of those compute in f32. Prints the largest difference
of logits, and ends with exit code 1 if one is above 1e-4 of the largest logit.
"""
import argparse
import os
import random
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

LIMIT, LAYERS, DIM = 1e-4, 3, 24
LENGTHS = (1, 2, 37, 70)
CONFIG = """
name: "peer" seed: 1
model {{ dim: {dim} layers: {layers} context: 128 norm {{ rms {{}} }} mixer {{ {mixer} }} ffn {{ swiglu {{ hidden: 8 }} }} }}
data {{ tokenizer {{ bytes {{}} }} train {{ path: "{text}" }} val {{ fraction: 0.1 }} }}
optim {{ group {{ match: "*" adamw {{ lr: 3e-2 }} }} schedule {{ constant {{}} }} }}
train {{ tokens: 5120 tokens_per_step: 256 micro_batch: 1 }}
checkpoint {{ keep_last: 1 }}
"""


def rms(x, gain=1.0, eps=1e-5):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def heads(x, count):
    return x.unflatten(-1, (count, -1))


def conv(x, weight, bias=None):
    """y_t = sum_w weight_w x_(t - W + 1 + w), then SiLU. x [T, D], weight [D, W]."""
    width = weight.shape[1]
    padded = torch.cat([x.new_zeros(width - 1, x.shape[1]), x])
    y = sum(weight[:, w] * padded[w:w + len(x)] for w in range(width))
    return F.silu(y if bias is None else y + bias)


def l2(x):
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def plain(q, k, v, alpha):
    """S = alpha S + k^T v, o = q S. alpha [T, H] or [T, H, K]; q, k, v [T, heads, ...], of which keys may have fewer heads."""
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    state, out = v.new_zeros(v.shape[1], k.shape[2], v.shape[2]), []
    for t in range(len(v)):
        state = alpha[t].reshape(v.shape[1], -1, 1) * state + k[t][:, :, None] * v[t][:, None, :]
        out.append(torch.einsum("hk,hkv->hv", q[t], state))
    return torch.stack(out)


def delta(q, k, v, alpha, beta):
    """S = (1 - b k^T k) alpha S + b k^T v."""
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    state, out = v.new_zeros(v.shape[1], k.shape[2], v.shape[2]), []
    for t in range(len(v)):
        state = alpha[t].reshape(v.shape[1], -1, 1) * state
        told = torch.einsum("hk,hkv->hv", k[t], state)
        state = state + (beta[t][:, None] * k[t])[:, :, None] * (v[t] - told)[:, None, :]
        out.append(torch.einsum("hk,hkv->hv", q[t], state))
    return torch.stack(out)


def gla(p, x, H, **_):
    q, k, v = (heads(p.of(name, x), H) for name in ("q", "k", "v"))
    alpha = heads(torch.sigmoid(p.of("decay_up", p.of("decay_down", x))).pow(1 / 16), H)
    o = plain(q * q.shape[-1] ** -0.5, k, v, alpha)
    return p.of("out", (rms(o, p["head_norm.weight"]) * heads(F.silu(p.of("gate", x)), H)).flatten(1))


def delta_parts(p, x, H, G):
    q, k, v = (conv(p.of(n, x), p[f"{n}_conv.weight"]) if f"{n}_conv.weight" in p else F.silu(p.of(n, x)) for n in "qkv")
    q, k, v = l2(heads(q, G)), l2(heads(k, G)), heads(v, H)
    return q * q.shape[-1] ** -0.5, k, v, torch.sigmoid(p.of("strength", x))


def delta_net(p, x, H, strongest=1.0, **_):
    q, k, v, beta = delta_parts(p, x, H, H)
    o = delta(q, k, v, torch.ones_like(beta), strongest * beta)
    return p.of("out", rms(o, p["head_norm.weight"]).flatten(1))


def gated_delta_net(p, x, H, G, **_):
    q, k, v, beta = delta_parts(p, x, H, G)
    alpha = torch.exp(-p["log_rate"].exp() * F.softplus(p.of("decay", x) + p["step_bias"]))
    o = rms(delta(q, k, v, alpha, beta), p["head_norm.weight"]) * heads(F.silu(p.of("gate", x)), H)
    return p.of("out", o.flatten(1))


def kda(p, x, H, is_safe=False, **_):
    q, k, v, beta = delta_parts(p, x, H, H)
    step, rate = heads(p.of("decay", p.of("decay_down", x)) + p["step_bias"], H), p["log_rate"].exp()[:, None]
    g = -5 * torch.sigmoid(rate * step) if is_safe else -rate * F.softplus(step)
    o = rms(delta(q, k, v, g.exp(), beta), p["head_norm.weight"])
    return p.of("out", (o * heads(torch.sigmoid(p.of("gate", p.of("gate_down", x))), H)).flatten(1))


def linear_attention(p, x, H, **_):
    q, k = (F.elu(heads(p.of(name, x), H)) + 1 for name in ("q", "k"))
    v, ones = heads(p.of("v", x), H), torch.ones(len(x), H, dtype=x.dtype)
    sums = plain(q, k, torch.cat([v, ones[:, :, None]], -1), ones)
    return p.of("out", rms(sums[..., :-1] / (sums[..., -1:] + 1e-6), p["head_norm.weight"]).flatten(1))


def rotated(x):
    """Pairs (c, c + K / 2) turn by t / 10000^(2 c / K)."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x), dtype=x.dtype)[:, None] * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def retnet(p, x, H, **_):
    q, k, v = (heads(p.of(name, x), H) for name in ("q", "k", "v"))
    alpha = (1 - 2.0 ** (-5 - torch.arange(H, dtype=x.dtype))).expand(len(x), H)
    o = plain(rotated(q) * q.shape[-1] ** -0.5, rotated(k), v, alpha)
    return p.of("out", (rms(o, p["head_norm.weight"]) * heads(F.silu(p.of("gate", x)), H)).flatten(1))


def lightning(p, x, H, layer, is_linear=False, **_):
    h = torch.arange(H, dtype=x.dtype)
    rate = 8 * h / H * (1 - layer / LAYERS) if is_linear else 2 ** (-8 * (h + 1) / H) * (1 - layer / (LAYERS - 1) + 1e-5)
    q, k, v = (heads(F.silu(p.of(name, x)), H) for name in ("q", "k", "v"))
    o = rms(plain(q, k, v, torch.exp(-rate).expand(len(x), H)).flatten(1), eps=1e-6)
    return p.of("out", o * torch.sigmoid(p.of("gate", p.of("gate_down", x))))


def mamba2(p, x, H, G, **_):
    value, key, query = (conv(p.of(n, x), p[f"{n}_conv.weight"], p[f"{n}_conv.bias"]) for n in ("x", "b", "c"))
    step, value = F.softplus(p.of("step", x) + p["step_bias"]), heads(value, H)
    o = plain(heads(query, G), heads(key, G), step[..., None] * value, torch.exp(-p["log_rate"].exp() * step))
    y = (o + p["skip"][:, None] * value).flatten(1) * F.silu(p.of("z", x))
    return p.of("out", rms(heads(y, G)).flatten(1) * p["norm_gain"])


def hgrn(p, x, H, layer, **_):
    shares = torch.softmax(p["bounds"].reshape(LAYERS, -1), 0)
    low = shares[1:layer + 1].sum(0)
    forget = low + (1 - low) * torch.sigmoid(p.of("decay", x))
    if H == 0:
        one = torch.ones(len(x), x.shape[1], 1, dtype=x.dtype)
        state = plain(one, one, ((1 - forget) * F.silu(p.of("v", x)))[..., None], forget)[..., 0]
        return p.of("out", rms(state, p["norm.weight"]) * F.silu(p.of("gate", x)))
    q = heads(F.silu(p.of("q", x)), H)
    o = plain(q * q.shape[-1] ** -0.5, heads(1 - forget, H), heads(p.of("v", x), H), heads(forget, H))
    return p.of("out", rms(o.flatten(1), p["norm.weight"]))


def gated_slots(p, x, H, **_):
    q, k, v = (heads(F.silu(p.of(name, x)), H) for name in ("q", "k", "v"))
    keep = heads(torch.sigmoid(p.of("decay", x)).pow(1 / 8), H)
    keys, values = v.new_zeros(H, keep.shape[2], k.shape[2]), v.new_zeros(H, keep.shape[2], v.shape[2])
    out = []
    for t in range(len(x)):
        kept, new = keep[t][:, :, None], (1 - keep[t])[:, :, None]
        keys, values = kept * keys + new * k[t][:, None], kept * values + new * v[t][:, None]
        out.append(torch.einsum("hm,hmv->hv", torch.softmax(torch.einsum("hk,hmk->hm", q[t], keys), -1), values))
    return p.of("out", rms(F.silu(torch.stack(out).flatten(1)), p["norm.weight"]))


def module_of(make, weights):
    module = make().double().eval()
    missing = set(dict(module.named_parameters())) - set(weights)
    if missing:
        sys.exit(f"{type(module).__name__}: no weights for {sorted(missing)}")
    module.load_state_dict({name: w.reshape(dict(module.named_parameters())[name].shape) for name, w in weights.items()}, strict=False)
    return module


def mamba2_of_transformers(p, x, H, G, **_):
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer
    convs = [torch.cat([p[f"{n}_conv.{part}"] for n in "xbc"]) for part in ("weight", "bias")]
    config = Mamba2Config(hidden_size=DIM, num_heads=H, head_dim=2 * DIM // H, expand=2, n_groups=G, conv_kernel=convs[0].shape[1],
                          state_size=p["b.weight"].shape[0] // G, chunk_size=16, num_hidden_layers=1)
    module = module_of(lambda: Mamba2Mixer(config, 0), {
        "in_proj.weight": torch.cat([p[f"{n}.weight"] for n in ("z", "x", "b", "c", "step")]), "conv1d.weight": convs[0],
        "conv1d.bias": convs[1], "dt_bias": p["step_bias"], "A_log": p["log_rate"], "D": p["skip"], "norm.weight": p["norm_gain"],
        "out_proj.weight": p["out.weight"]})
    return module(x[None])[0]


def gated_delta_net_of_transformers(p, x, H, G, strongest=1.0, **_):
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridConfig, OlmoHybridGatedDeltaNet
    config = OlmoHybridConfig(hidden_size=DIM, linear_num_value_heads=H, linear_num_key_heads=G, num_hidden_layers=4,
                              linear_key_head_dim=p["k.weight"].shape[0] // G, linear_value_head_dim=p["v.weight"].shape[0] // H,
                              linear_conv_kernel_dim=p["k_conv.weight"].shape[1], linear_allow_neg_eigval=strongest == 2.0)
    module = module_of(lambda: OlmoHybridGatedDeltaNet(config, 0), {
        **{f"{n}_proj.weight": p[f"{n}.weight"] for n in "qkv"}, "a_proj.weight": p["decay.weight"], "b_proj.weight": p["strength.weight"],
        "g_proj.weight": p["gate.weight"], "o_proj.weight": p["out.weight"], "A_log": p["log_rate"], "dt_bias": p["step_bias"],
        "conv1d.weight": torch.cat([p[f"{n}_conv.weight"] for n in "qkv"]), "o_norm.weight": p["head_norm.weight"]})
    return module(x[None])[0]


def kda_of_transformers(p, x, H, **_):
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearConfig, KimiLinearDeltaAttention
    config = SimpleNamespace(hidden_size=DIM, linear_num_heads=H, linear_head_dim=DIM // H, hidden_act="silu", rms_norm_eps=1e-5,
                             linear_conv_kernel_dim=p["k_conv.weight"].shape[1], layer_types=["linear_attention"])
    def made():  # with the bias of the output gate, which transformers leaves out
        module = KimiLinearDeltaAttention(config, 0)
        module.g_b_proj = torch.nn.Linear(DIM // H, DIM)
        return module

    module = module_of(made, {
        "g_b_proj.bias": p["gate.bias"], **{f"{n}_proj.weight": p[f"{n}.weight"] for n in "qkv"}, "b_proj.weight": p["strength.weight"],
        "forget_gate.f_a_proj.weight": p["decay_down.weight"], "forget_gate.f_b_proj.weight": p["decay.weight"],
        "forget_gate.dt_bias": p["step_bias"], "forget_gate.A_log": p["log_rate"], "g_a_proj.weight": p["gate_down.weight"],
        "g_b_proj.weight": p["gate.weight"], "o_norm.weight": p["head_norm.weight"], "o_proj.weight": p["out.weight"],
        "conv1d.weight": torch.cat([p[f"{n}_conv.weight"] for n in "qkv"])})
    return module(x[None])[0]


def lightning_of_transformers(p, x, H, layer, **_):
    from transformers.models.minimax.modeling_minimax import MiniMaxConfig, MiniMaxLightningAttention
    config = MiniMaxConfig(hidden_size=DIM, num_attention_heads=H, head_dim=DIM // H, num_hidden_layers=LAYERS, block_size=16,
                           hidden_act="silu", layer_types=["linear_attention"] * LAYERS)
    by_head = [p[f"{n}.weight"].unflatten(0, (H, -1)) for n in "qkv"]
    module = module_of(lambda: MiniMaxLightningAttention(config, layer), {
        "qkv_proj.weight": torch.cat(by_head, 1).flatten(0, 1), "out_proj.weight": p["out.weight"],
        "output_gate.weight": p["gate.weight"] @ p["gate_down.weight"], "norm.weight": torch.ones(DIM, dtype=x.dtype)})
    return module(x[None], None, None)[0][0]


GDN = "delta { decay: head heads: 4 key_heads: %d head_dim: 6 value_dim: 5 kernel: %d }"
CASES = {
    "gla": ("gla { heads: 3 gate_rank: 5 }", gla, dict(H=3)),
    "delta_net": ("delta { decay: none heads: 3 }", delta_net, dict(H=3)),
    "delta_net, b up to 2": ("delta { decay: none heads: 2 kernel: 2 negative_eigenvalues: true }", delta_net, dict(H=2, strongest=2.0)),
    "gated_delta_net": (GDN % (4, 4), gated_delta_net, dict(H=4, G=4)),
    "gated_delta_net, shared keys": (GDN % (2, 3), gated_delta_net, dict(H=4, G=2)),
    "gated_delta_net, no convolution": (GDN % (4, 0), gated_delta_net, dict(H=4, G=4)),
    "gated_delta_net, transformers": (GDN % (4, 4), gated_delta_net_of_transformers, dict(H=4, G=4)),
    "kda": ("delta { decay: channel heads: 3 }", kda, dict(H=3)),
    "kda, safe gate": ("delta { decay: channel heads: 2 kernel: 0 safe_gate: true }", kda, dict(H=2, is_safe=True)),
    "kda, transformers": ("delta { decay: channel heads: 3 }", kda_of_transformers, dict(H=3)),
    "linear_attention": ("linear_attention { heads: 3 }", linear_attention, dict(H=3)),
    "retnet": ("retnet { heads: 3 }", retnet, dict(H=3)),
    "lightning": ("lightning { heads: 3 }", lightning, dict(H=3)),
    "lightning, linear rule": ("lightning { decay: linear heads: 3 }", lightning, dict(H=3, is_linear=True)),
    "lightning, transformers": ("lightning { heads: 3 }", lightning_of_transformers, dict(H=3)),
    "mamba2": ("mamba2 { heads: 4 state_dim: 7 }", mamba2, dict(H=4, G=1)),
    "mamba2, groups": ("mamba2 { heads: 6 groups: 2 state_dim: 5 kernel: 3 }", mamba2, dict(H=6, G=2)),
    "mamba2, transformers": ("mamba2 { heads: 4 state_dim: 7 }", mamba2_of_transformers, dict(H=4, G=1)),
    "mamba2, groups, transformers": ("mamba2 { heads: 6 groups: 2 state_dim: 5 kernel: 3 }", mamba2_of_transformers, dict(H=6, G=2)),
    "hgrn2": ("hgrn { heads: 3 }", hgrn, dict(H=3)),
    "hgrn": ("hgrn { heads: 0 }", hgrn, dict(H=0)),
    "gated_slots": ("gated_slots { heads: 3 slots: 5 }", gated_slots, dict(H=3)),
}


class Parameters(dict):
    """Those of one mixer by their names."""

    def of(self, name, x):
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if f"{name}.bias" in self else y


def logits_here(weights, ids, mixer, options):
    w = {name: value.double() for name, value in weights.items()}
    x = w["embedding.weight"][ids]
    for layer in range(LAYERS):
        prefix = f"layers.{layer}.mixer."
        p = Parameters({name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)})
        if "bounds" not in p:
            p.update({"bounds": value for name, value in w.items() if name.endswith("mixer.bounds")})
        x = x + mixer(p, rms(x, w[f"layers.{layer}.mixer_norm.weight"], 1e-6), layer=layer, **options)
        y, up, gate, down = rms(x, w[f"layers.{layer}.ffn_norm.weight"], 1e-6), *(w[f"layers.{layer}.ffn.{n}.weight"] for n in ("up", "gate", "down"))
        x = x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T
    return rms(x, w["norm.weight"], 1e-6) @ w.get("head.weight", w["embedding.weight"]).T


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def weights_file(folder):
    found = [os.path.join(base, f) for base, _, files in os.walk(folder) for f in files if f == "model.safetensors"]
    return sorted(found)[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weft")
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", default="")
    words = parser.parse_args()
    torch.set_num_threads(1)
    is_good = True
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        base = words.keep or temporary
        for number, (name, (mixer, layer, options)) in enumerate(CASES.items()):
            if words.only not in name:
                continue
            torch.manual_seed(number)
            folder = os.path.join(base, str(number))
            os.makedirs(folder, exist_ok=True)
            config = os.path.join(folder, "config.txtpb")
            with open(config, "w", encoding="utf-8") as file:
                file.write(CONFIG.format(dim=DIM, layers=LAYERS, mixer=mixer, text=os.path.abspath(__file__)))
            made = os.path.join(folder, "run")
            run(words.weft, "train", config, "--run", made)
            path = weights_file(made)
            weights = load_file(path)
            furthest, largest = 0.0, 0.0
            for length in LENGTHS:
                text = "".join(random.Random(length).choice("abcdefgh XYZ.,") for _ in range(length))
                logits = os.path.join(folder, "logits.safetensors")
                run(words.weft, "sample", made, "--prompt", text, "--logits", logits)
                ours = load_file(logits)
                here = logits_here(weights, ours["ids"][0].long(), layer, options)
                furthest = max(furthest, (here - ours["logits"].double()).abs().max().item())
                largest = max(largest, here.abs().max().item())
            is_good = is_good and furthest < LIMIT * largest
            print(f"{name:34} logits up to {largest:6.2f}, difference {furthest:.1e}", flush=True)
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()

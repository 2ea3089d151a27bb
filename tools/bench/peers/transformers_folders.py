"""Folders of transformers read and written by Weft, and tokenizers of the tokenizers library. Not needed to build, run or test Weft.

    pip install torch transformers tokenizers
    python tools/bench/peers/transformers_folders.py build/release/weft [--text FILE] [--keep FOLDER]

For each shape a tiny random model is made and saved by transformers. Weft imports it, and the logits of both are compared; Weft exports it
again, transformers reads that, and the logits are compared once more. Then ids of random texts are compared for the three patterns, and the
merges that both learn from a text. Prints one line each, and ends with exit code 1 if a difference is above 1e-4 or an id differs.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import (AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM)

LIMIT = 1e-4
SMALL = dict(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=64)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
GPT2 = dict(vocab_size=97, n_embd=48, n_layer=3, n_head=6, n_positions=64)


def with_rope(config, theta, scaling=None):
    """Both ways of saying it: newer versions of transformers have rope_parameters alone."""
    if hasattr(config, "rope_parameters"):
        config.rope_parameters = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    else:
        config.rope_theta = theta
        config.rope_scaling = scaling
    return config


SHAPES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "llama tied, biases": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True)),
    "llama wide heads, llama3 scaling": lambda: LlamaForCausalLM(
        with_rope(LlamaConfig(**SMALL, head_dim=16), 500000.0, LLAMA3)),
    "llama yarn": lambda: LlamaForCausalLM(with_rope(LlamaConfig(**SMALL), 10000.0, YARN)),
    "llama linear scaling": lambda: LlamaForCausalLM(
        with_rope(LlamaConfig(**SMALL), 10000.0, {"rope_type": "linear", "factor": 2.0})),
    "qwen2": lambda: Qwen2ForCausalLM(with_rope(Qwen2Config(**SMALL), 1e6)),
    "qwen2 windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=5, max_window_layers=1, attn_implementation="eager")),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
    "qwen3 tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True)),
    "qwen3_next": lambda: Qwen3NextForCausalLM(Qwen3NextConfig(
        **{**SMALL, "num_hidden_layers": 4}, head_dim=16, num_experts=0, mlp_only_layers=[0, 1, 2, 3],
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "gpt2 wide": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, n_inner=64)),
}


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")
    return done.stdout


def randomised(model):
    """Weights far from their small initial values, so that every part of the model counts."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_gain = p.ndim == 1 and name.endswith("weight")
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim == 1 else 0.08) + (1.0 if is_gain else 0.0))
    return model.eval()


def difference(model, logits, ids):
    with torch.no_grad():
        return (model(torch.tensor([ids])).logits[0] - logits).abs().max().item()


def compare_models(weft, folder):
    is_good = True
    for number, (name, make) in enumerate(SHAPES.items()):
        torch.manual_seed(number)
        model = randomised(make())
        given, imported, exported, logits = (os.path.join(folder, f"{number}-{part}") for part in
                                             ("given", "run", "exported", "logits.safetensors"))
        model.save_pretrained(given, max_shard_size="40KB" if number % 2 else "5GB")
        run(weft, "import", given, "--out", imported)
        ids = [random.Random(number).randrange(97) for _ in range(40)]
        run(weft, "sample", imported, "--prompt", " ".join(map(str, ids)), "--logits", logits)
        ours = load_file(logits)["logits"]
        run(weft, "export", imported, "--out", exported)
        again = AutoModelForCausalLM.from_pretrained(exported, attn_implementation="eager").eval()
        read, written = difference(model, ours, ids), difference(again, ours, ids)
        is_good = is_good and max(read, written) < LIMIT
        print(f"{name:36} logits up to {ours.abs().max():6.2f}: import {read:.1e}, export {written:.1e}")
    return is_good


def random_texts():
    parts = ["a", "Z", "s", "'", "'ll", "'VE", " ", "  ", "\n", "\r\n", "\t", "7", "42", "!", "_.", "(", "\u00e9", "e\u0301", "\u4e2d",
             "\u0663", "\u00a0", "\u3000", "\U0001f600", "the", "and", "\u017f", "\u00bd", "\u0345", "\u1e9b\u0323", "\ud55c", "\u1112\u1161\u11ab"]
    draw = random.Random(1)
    for _ in range(3000):
        yield "".join(draw.choice(parts) for _ in range(draw.randrange(1, 60)))


def shard_ids(path):
    with open(path, "rb") as file:
        words = file.read()
    width = 2 if int.from_bytes(words[:4], "little") == 20240520 else 4
    return [int.from_bytes(words[i:i + width], "little") for i in range(1024, len(words), width)]


def compare_tokenizers(weft, folder, text_file):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    text = open(text_file, encoding="utf-8").read()
    mixed = "\n".join(random_texts())
    is_good = True
    for pattern in ("gpt2", "llama3", "qwen2"):
        path = os.path.join(folder, f"{pattern}.json")
        run(weft, "data", "bpe", text_file, "--out", path, "--vocab", "1500", "--pattern", pattern)
        ours = Tokenizer.from_file(path)
        learned = Tokenizer(models.BPE())
        learned.normalizer = ours.normalizer
        learned.pre_tokenizer = ours.pre_tokenizer
        learned.train_from_iterator([text], trainers.BpeTrainer(
            vocab_size=1500, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"]))
        merges = [json.loads(t.to_str())["model"]["merges"] for t in (ours, learned)]
        merges = [[m.split(" ") if isinstance(m, str) else m for m in one] for one in merges]
        same = sum(a == b for a, b in zip(*merges))
        counts = []
        for name, sample in (("text", text), ("random", mixed)):
            source, out = os.path.join(folder, f"{name}.txt"), os.path.join(folder, f"{pattern}-{name}")
            with open(source, "w", encoding="utf-8", newline="") as file:
                file.write(sample)
            run(weft, "data", "tokenize", source, "--out", out, "--tokenizer", "bpe", "--file", path)
            theirs = ours.encode(sample, add_special_tokens=False).ids
            mine = shard_ids(out + "_000000.bin")[:-1]  # behind the text stands its end
            counts.append(len(theirs))
            if mine != theirs:
                at = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), min(len(mine), len(theirs)))
                print(f"{pattern}: ids of the {name} differ from id {at} on: {ours.decode(theirs[max(0, at - 5):at + 5])!r}")
                is_good = False
        is_good = is_good and same == len(merges[0]) == len(merges[1])
        print(f"{pattern:36} {same} of {len(merges[1])} merges alike; ids compared: {counts[0]} of the text, {counts[1]} random")
    return is_good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weft")
    parser.add_argument("--text", default=__file__)
    parser.add_argument("--keep", default="")
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = words.keep or temporary
        os.makedirs(folder, exist_ok=True)
        is_good = compare_models(words.weft, folder)
        is_good = compare_tokenizers(words.weft, folder, words.text) and is_good
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()

"""Folders of transformers read and written by Weft, and tokenizers of the tokenizers library. Not needed to build, run or test Weft.

    pip install torch transformers tokenizers
    python tools/bench/peers/transformers_folders.py build/release/weft [--text FILE] [--keep FOLDER]

For each shape a tiny random model is made and saved by transformers, and then --random models of each family with random sizes and options.
Weft imports it, and the logits of both are compared, in transformers those of a batch whose other row is longer; Weft exports it again, in
shards every second time, transformers reads that, and the logits are compared once more, with the id that ends a text. Adapters that Weft
has trained are merged and compared so too. Then ids of random texts are compared for the three patterns, the merges that both learn from
a text, and what is read of a text in a folder whose tokenizer has a template, or is GPT-2's pair of files. Prints one line each, and ends with
exit code 1 if a difference is above 1e-4 or an id differs.
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import (AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, KimiLinearConfig, KimiLinearForCausalLM,
                          LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3NextConfig,
                          Qwen3NextForCausalLM)

LIMIT = 1e-4
END = "<|endof" + "text|>"  # in two parts: the text is this file, in which the tokenizers library would find the token
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
    "kimi_linear": lambda: kimi(4, ["linear_attention"] * 3 + ["full_attention"]),
    "kimi_linear, low-rank queries": lambda: kimi(2, ["full_attention", "linear_attention"], q_lora_rank=20,
                                                 rms_norm_eps=1e-3),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "gpt2 wide": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, n_inner=64)),
    "gpt2, gelu by its other name": lambda: GPT2LMHeadModel(
        GPT2Config(**GPT2, activation_function="gelu_pytorch_tanh", tie_word_embeddings=False)),
}


def kimi(layers, kinds, **more):
    sizes = dict(SMALL, num_hidden_layers=layers, num_key_value_heads=6, kv_lora_rank=20, qk_nope_head_dim=12,
                 qk_rope_head_dim=6, v_head_dim=12, linear_head_dim=8, linear_num_heads=3, pad_token_id=0,
                 bos_token_id=1, eos_token_id=2)
    return KimiLinearForCausalLM(
        KimiLinearConfig(**{**sizes, "layer_types": kinds, "mlp_layer_types": ["dense"] * layers, **more}))


def random_sizes(draw):
    kv_heads, shared = draw.choice([1, 2, 3]), draw.choice([1, 2, 3])
    return dict(vocab_size=draw.randrange(50, 120), hidden_size=kv_heads * shared * draw.randrange(3, 9),
                intermediate_size=draw.randrange(7, 90), num_hidden_layers=draw.randrange(1, 4),
                num_attention_heads=kv_heads * shared, num_key_value_heads=kv_heads,
                head_dim=2 * draw.randrange(1, 9), max_position_embeddings=64,
                rms_norm_eps=draw.choice([1e-6, 1e-5, 1e-2]), tie_word_embeddings=draw.random() < 0.5)


def random_rope(draw, config):
    scaling = draw.choice([None, LLAMA3, YARN, {"rope_type": "linear", "factor": draw.uniform(1, 9)},
                           {**YARN, "attention_factor": draw.uniform(0.5, 2)}])
    return with_rope(config, draw.choice([100.0, 10000.0, 1e6]), scaling)


def random_windows(draw, sizes):
    if draw.random() < 0.5:
        return {}
    return dict(use_sliding_window=True, sliding_window=draw.randrange(1, 50), attn_implementation="eager",
                max_window_layers=draw.randrange(sizes["num_hidden_layers"] + 1))


def random_llama(draw):
    sizes = random_sizes(draw)
    return LlamaForCausalLM(random_rope(draw, LlamaConfig(**sizes, attention_bias=draw.random() < 0.5)))


def random_qwen2(draw):
    sizes = random_sizes(draw)
    return Qwen2ForCausalLM(random_rope(draw, Qwen2Config(**sizes, **random_windows(draw, sizes))))


def random_qwen3(draw):
    sizes = random_sizes(draw)
    return Qwen3ForCausalLM(random_rope(
        draw, Qwen3Config(**sizes, attention_bias=draw.random() < 0.5, **random_windows(draw, sizes))))


def random_next(draw):
    sizes = random_sizes(draw)
    layers, key_heads = sizes["num_hidden_layers"], draw.randrange(1, 4)
    sizes["head_dim"] = 8
    return Qwen3NextForCausalLM(Qwen3NextConfig(
        **sizes, num_experts=0, mlp_only_layers=list(range(layers)), linear_num_key_heads=key_heads,
        linear_num_value_heads=key_heads * draw.randrange(1, 4), linear_key_head_dim=draw.randrange(1, 12),
        linear_value_head_dim=draw.randrange(1, 12), linear_conv_kernel_dim=draw.randrange(1, 6),
        layer_types=[draw.choice(["linear_attention", "full_attention"]) for _ in range(layers)]))


def random_kimi(draw):
    sizes, heads, width = random_sizes(draw), draw.randrange(1, 5), draw.randrange(1, 12)
    layers = sizes["num_hidden_layers"]
    for name in ("num_hidden_layers", "head_dim", "tie_word_embeddings"):
        del sizes[name]
    return kimi(layers, [draw.choice(["linear_attention", "full_attention"]) for _ in range(layers)],
                **{**sizes, "num_attention_heads": heads, "num_key_value_heads": heads, "qk_nope_head_dim": width,
                   "v_head_dim": width, "qk_rope_head_dim": 2 * draw.randrange(1, 5), "kv_lora_rank": draw.randrange(1, 30),
                   "q_lora_rank": draw.choice([None, draw.randrange(1, 30)]), "linear_head_dim": draw.randrange(1, 12),
                   "linear_num_heads": draw.randrange(1, 5), "linear_conv_kernel_dim": draw.randrange(2, 6)})


def random_gpt2(draw):
    heads = draw.randrange(1, 5)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=draw.randrange(50, 120), n_embd=heads * draw.randrange(1, 12), n_layer=draw.randrange(1, 4), n_head=heads,
        n_positions=64, n_inner=draw.choice([None, draw.randrange(5, 90)]), layer_norm_epsilon=draw.choice([1e-5, 1e-2]),
        activation_function=draw.choice(["gelu_new", "gelu_pytorch_tanh"]), tie_word_embeddings=draw.random() < 0.5))


FAMILIES = {"llama": random_llama, "qwen2": random_qwen2, "qwen3": random_qwen3, "qwen3_next": random_next,
            "kimi_linear": random_kimi, "gpt2": random_gpt2}


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
    """Of ours, and of theirs in a batch with a longer row: padding stands on the left, and positions do not count it."""
    others = [(7 * i + 3) % model.config.vocab_size for i in range(len(ids) + 5)]
    rows = torch.tensor([[0] * 5 + ids, others])
    mask = torch.tensor([[0] * 5 + [1] * len(ids), [1] * len(others)])
    with torch.no_grad():
        alone = model(torch.tensor([ids]), use_cache=False).logits[0]
        padded = model(rows, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                       use_cache=False).logits[0, 5:]
    return max((alone - logits).abs().max().item(), (padded - logits).abs().max().item())


def weft_logits(weft, run_folder, ids, path):
    run(weft, "sample", run_folder, "--prompt", " ".join(map(str, ids)), "--logits", path)
    return load_file(path)["logits"]


def reread(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def compare_model(weft, folder, number, name, make):
    torch.manual_seed(number)
    model = randomised(make())
    given, imported, exported, logits = (os.path.join(folder, f"{number}-{part}") for part in
                                         ("given", "run", "exported", "logits.safetensors"))
    end = number % model.config.vocab_size
    model.config.eos_token_id = model.generation_config.eos_token_id = [end, 1] if number % 3 == 0 else end
    model.save_pretrained(given, max_shard_size="40KB" if number % 2 else "5GB")
    run(weft, "import", given, "--out", imported)
    ids = [random.Random(number).randrange(model.config.vocab_size) for _ in range(40)]
    ours = weft_logits(weft, imported, ids, logits)
    run(weft, "export", imported, "--out", exported, *(["--max-shard-size", "20k"] if number % 2 else []))
    again = reread(exported)
    read, written = difference(model, ours, ids), difference(again, ours, ids)
    has_end = again.config.eos_token_id == end
    print(f"{name:36} logits up to {ours.abs().max():6.2f}: import {read:.1e}, export {written:.1e}"
          f"{'' if has_end else f', end of text {again.config.eos_token_id} for {end}'}", flush=True)
    return max(read, written) < LIMIT and has_end


def compare_models(weft, folder, num_random):
    rows = list(SHAPES.items())
    for i in range(num_random):
        rows += [(f"{family}, random {i}", lambda make=make, i=i: make(random.Random(i))) for family, make in FAMILIES.items()]
    return all([compare_model(weft, folder, number, name, make) for number, (name, make) in enumerate(rows)])


def compare_adapters(weft, folder):
    """A few steps of low-rank adapters on random ids; Weft merges them, and transformers reads that."""
    is_good = True
    shard, draw = os.path.join(folder, "ids.bin"), random.Random(3)
    with open(shard, "wb") as file:
        ids = [draw.randrange(97) for _ in range(20000)]
        file.write(struct.pack("<256i", 20240520, 1, len(ids), *[0] * 253) + struct.pack(f"<{len(ids)}H", *ids))
    for name in ("llama", "qwen2", "qwen3", "gpt2"):
        torch.manual_seed(5)
        given, base, adapted, merged, logits = (os.path.join(folder, f"adapted-{name}-{part}") for part in
                                                ("given", "base", "run", "merged", "logits.safetensors"))
        randomised(SHAPES[name]()).save_pretrained(given)
        run(weft, "import", given, "--out", base)
        run(weft, "train", os.path.join(base, "config.txtpb"), "--run", adapted,
            f'start={{from:"{base}",frozen:"*",trained:"*.adapter_*"}}', 'model.adapter=[{match:"layers.*",rank:3}]',
            "data.weights_only=false", f'data.train+={{path:"{shard}"}}', "data.val.fraction=0.2", "data.document_mask=false",
            'optim.group=[{match:"*",adamw{lr:0.02}}]', "optim.schedule={constant{}}", "train.tokens=2560",
            "train.tokens_per_step=256", "train.micro_batch=4", "log.sample_tokens=1")
        ids = [draw.randrange(97) for _ in range(40)]
        ours = weft_logits(weft, adapted, ids, logits)
        moved = (ours - weft_logits(weft, base, ids, logits)).abs().max().item()
        run(weft, "export", adapted, "--out", merged, "--merge-adapters")
        apart = difference(reread(merged), ours, ids)
        is_good = is_good and apart < LIMIT and moved > 0.01
        print(f"{name + ', merged adapters':36} logits moved by {moved:6.2f}: export {apart:.1e}", flush=True)
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
            special_tokens=[END]))
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


def compare_folders_of_tokenizers(weft, folder, text_file):
    """A template that puts an id before a text, and GPT-2's pair of files: what `weft sample` reads of a text is what the library gives."""
    from tokenizers import Tokenizer, processors
    is_good, text, name = True, "Some words, 12345 of them, and \u4e2d\u6587.", "<|begin|>"
    learned, logits = os.path.join(folder, "folder.json"), os.path.join(folder, "folder.safetensors")
    run(weft, "data", "bpe", text_file, "--out", learned, "--vocab", "600", "--pattern", "gpt2")
    for kind in ("template", "pair"):
        tokenizer = Tokenizer.from_file(learned)
        given, imported, exported = (os.path.join(folder, f"{kind}-{part}") for part in ("given", "run", "exported"))
        GPT2LMHeadModel(GPT2Config(**{**GPT2, "vocab_size": 640}, bos_token_id=None, eos_token_id=7)).save_pretrained(given)
        if kind == "template":
            tokenizer.add_special_tokens([name])
            begin = tokenizer.token_to_id(name)
            tokenizer.post_processor = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, begin)])
            tokenizer.save(os.path.join(given, "tokenizer.json"))
        else:
            begin = None
            tokenizer.model.save(given)
        run(weft, "import", given, "--out", imported)
        run(weft, "sample", imported, "--prompt", text, "--logits", logits)
        run(weft, "export", imported, "--out", exported)
        ours, wanted = load_file(logits)["ids"].flatten().tolist(), tokenizer.encode(text).ids
        again, config = AutoTokenizer.from_pretrained(exported), json.load(open(os.path.join(exported, "config.json")))
        is_same = ours == wanted == again(text)["input_ids"] and config["bos_token_id"] == begin and config["eos_token_id"] == 7
        print(f"{'tokenizer, ' + kind:36} {len(wanted)} ids {'alike' if is_same else f'DIFFER: {ours}, {wanted}, {again(text)}'}")
        is_good = is_good and is_same
    return is_good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weft")
    parser.add_argument("--text", default=__file__)
    parser.add_argument("--keep", default="")
    parser.add_argument("--random", type=int, default=3)
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = words.keep or temporary
        os.makedirs(folder, exist_ok=True)
        is_good = compare_models(words.weft, folder, words.random)
        is_good = compare_adapters(words.weft, folder) and is_good
        is_good = compare_tokenizers(words.weft, folder, words.text) and is_good
        is_good = compare_folders_of_tokenizers(words.weft, folder, words.text) and is_good
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    main()

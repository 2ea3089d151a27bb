"""lm-evaluation-harness against `weft serve`. Not needed to build, run or test Weft.

    pip install 'lm_eval[api]'
    python tools/bench/peers/lm_eval_serve.py build/release/weft [--keep FOLDER]

Trains a small run of bytes (a hybrid of Gated DeltaNet and softmax) on a text that it writes, serves it, and lets the harness ask for one task of
each kind of request: multiple choice, generation and rolling log likelihoods. The tasks are files of its own, so that nothing is downloaded. Each is
asked twice, in 8 requests at a time and in requests of 8. Prints the harness's metrics, and ends with exit code 1 if

    multiple choice        does not take the continuation that the text has,
    generation             is not what `weft sample` writes at temperature 0,
    bits per byte          are not those of `weft eval` over the same windows, to 0.01 %,
    requests of 8          give other metrics than 8 requests, by more than 1e-4.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

CONTEXT = 256
WINDOW = CONTEXT - 2  # that the harness scores at a time: it leaves room for one token before it and one behind
CONFIG = """
model {{
  dim: 48 layers: 2 context: {context} norm {{ rms {{}} }} ffn {{ swiglu {{ hidden: 96 }} }}
  mixer {{ delta {{ heads: 2 decay: head }} }} mixer {{ softmax {{ heads: 4 }} }} pattern: "0 1"
}}
data {{ tokenizer {{ bytes {{}} }} train {{ path: "train.txt" }} val {{ path: "held.txt" }} }}
optim {{ group {{ match: "*" adamw {{ lr: 3e-3 }} }} }}
train {{ tokens: 204800 tokens_per_step: 2048 micro_batch: 8 threads: 1 }}
eval {{ every: 0 }} log {{ sample_tokens: 1 }} checkpoint {{ every: 0 }}
"""
TASKS = {
    "weft_mc": """
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "weft_gen": """
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs: {until: ["\\n"], max_gen_toks: 24, do_sample: false, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "weft_ppl": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
}


def run(*words, **more):
    done = subprocess.run(words, capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    return path


def sentences(count, seed):
    draw = random.Random(seed)
    who, does, what = ["the miller", "a sailor", "my sister", "the old king"], ["sold", "painted", "lost"], ["a boat", "two horses", "the clock"]
    return [f"in the year {draw.randrange(1000, 2000)} {draw.choice(who)} {draw.choice(does)} {draw.choice(what)}." for _ in range(count)]


def train(weft, folder):
    write(os.path.join(folder, "train.txt"), "\n".join(sentences(4000, 1)) + "\n")
    page = "\n".join(sentences(200, 2))[:24 * WINDOW]
    write(os.path.join(folder, "page.txt"), page)
    write(os.path.join(folder, "held.txt"), "\n" + page)  # behind the token that the harness puts before a page
    config = write(os.path.join(folder, "bytes.txtpb"), CONFIG.format(context=CONTEXT))
    path = os.path.join(folder, "run")
    run(weft, "train", config, "--run", path, "--quiet")
    return path


def greedy(weft, path, prompt):
    """The line that the model writes, as `weft sample` says it."""
    said = run(weft, "sample", path, "--prompt", prompt, "--tokens", "24", "--temperature", "0", "--json", "train.threads=1")
    return json.loads(said)["samples"][0].split("\n")[0]


def write_tasks(weft, path, folder):
    prompts = ["\n" + line[:24] for line in sentences(24, 3)]
    data = {
        "weft_mc": [{"prompt": f"in the year {1000 + 7 * i} the old ", "choices": ["king", "kxqz", "vvvv"], "answer": 0} for i in range(24)],
        "weft_gen": [{"prompt": prompt, "answer": greedy(weft, path, prompt)} for prompt in prompts],
        "weft_ppl": [{"page": open(os.path.join(folder, "page.txt"), encoding="ascii").read()}],
    }
    tasks = os.path.join(folder, "tasks")
    os.makedirs(tasks, exist_ok=True)
    for name, rows in data.items():
        source = write(os.path.join(tasks, name + ".jsonl"), "\n".join(json.dumps(row) for row in rows) + "\n")
        write(os.path.join(tasks, name + ".yaml"), f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {source}}}}}\n"
              f"test_split: test\n{TASKS[name].lstrip()}")
    return tasks


def ask(url, model, tasks, folder, concurrent, batch):
    """All metrics of one run of the harness, by task and name."""
    out = os.path.join(folder, f"harness-{concurrent}-{batch}")
    arguments = (f"model={model},base_url={url}/v1/completions,tokenizer_backend=remote,max_length={CONTEXT},"
                 f"num_concurrent={concurrent},custom_prefix_token_id=10")
    offline = {**os.environ, "HF_HOME": os.path.join(folder, "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    print(run(sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments, "--tasks", ",".join(TASKS),
              "--include_path", tasks, "--batch_size", str(batch), "--output_path", out, env=offline))
    results = [os.path.join(at, name) for at, _, names in os.walk(out) for name in names if name.startswith("results")]
    with open(max(results, key=os.path.getmtime), encoding="utf-8") as file:  # a folder that is kept has those of earlier calls
        return {(task, name.split(",")[0]): value for task, row in json.load(file)["results"].items()
                for name, value in row.items() if name.endswith(",none") and isinstance(value, float) and "stderr" not in name}


def compare(weft, folder):
    path = train(weft, folder)
    tasks = write_tasks(weft, path, folder)
    server = subprocess.Popen([weft, "serve", path, "--port", "0", "--json", "--threads", "1"], stdout=subprocess.PIPE, text=True)
    try:
        said = ""
        while not said.rstrip().endswith("}"):
            line = server.stdout.readline()
            if not line:
                sys.exit("weft serve ended before it was asked")
            said += line
        serving = json.loads(said)
        single = ask(serving["url"], serving["model"], tasks, folder, 8, 1)
        batched = ask(serving["url"], serving["model"], tasks, folder, 1, 8)
    finally:
        server.terminate()
        server.wait()
    bits = json.loads(run(weft, "eval", path, "--json", "--lengths", str(WINDOW), "train.threads=1"))["validation"][0]["bpb"]
    theirs = single["weft_ppl", "bits_per_byte"]
    apart = max(abs(batched[key] - value) for key, value in single.items())
    rows = [("multiple choice", single["weft_mc", "acc"], "1", single["weft_mc", "acc"] == 1),
            ("generation", single["weft_gen", "exact_match"], "1", single["weft_gen", "exact_match"] == 1),
            ("bits per byte", theirs, f"{bits:.4f} of weft eval", abs(theirs / bits - 1) < 1e-4),
            ("requests of 8", apart, "at most 1e-4 apart", apart <= 1e-4)]
    for what, value, wanted, is_good in rows:
        print(f"{what:18} {value:<8.4g} {wanted:26} {'ok' if is_good else 'DIFFERS'}")
    return all(row[-1] for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weft")
    parser.add_argument("--keep", default="")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.abspath(words.keep or temporary)
        os.makedirs(folder, exist_ok=True)
        sys.exit(0 if compare(os.path.abspath(words.weft), folder) else 1)


if __name__ == "__main__":
    main()

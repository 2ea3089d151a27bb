"""The rows of `weft bench` that the scripts of this folder measure too, by Weft's names. Needs no PyTorch."""

STEPS = {  # of `weft bench train`: layers, width, heads, tokens, vocabulary, batch
    "L8": (8, 512, 8, 1024, 8192, 4),
    "L6": (6, 384, 6, 512, 8192, 4),
    "L4": (4, 128, 4, 256, 256, 16),
}
ATTENTION_SHAPE = "B1 H8 d64 T4096"
ATTENTION = [  # of `weft bench attention`, forward and backward: case and dtype
    ("", "f32"), ("", "bf16"), ("window 512", "f32"), ("documents 512", "f32"), ("softcap", "f32"), ("alibi", "f32"),
]
DIRECTIONS = ("forward", "backward")


def step_shape(name):
    layers, dim, heads, tokens, vocab, batch = STEPS[name]
    return f"L{layers} d{dim} h{heads} T{tokens} V{vocab} B{batch}"


def find(rows, name, shape, dtype):
    """The row of what `weft bench --json` printed."""
    for row in rows:
        if (row["name"], row["shape"], row["dtype"]) == (name, shape, dtype):
            return row
    raise SystemExit(f"rows: weft bench has no row {name!r}, {shape}, {dtype}")


def read():
    """All rows that are read of Weft: family, name, shape, dtype, and the fields that are used."""
    for shape in STEPS:
        for dtype in ("f32", "bf16"):
            yield "train", "step", step_shape(shape), dtype, ["value", "limit", "goal"]
    for case, dtype in ATTENTION:
        for direction in DIRECTIONS:
            yield "attention", f"{direction} {case}".strip(), ATTENTION_SHAPE, dtype, ["time"]


if __name__ == "__main__":
    for family, name, shape, dtype, fields in read():
        print(family, name, shape, dtype, ",".join(fields), sep="\t")

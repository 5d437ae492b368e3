"""What `benchmarks.speed.run` measured, as Markdown."""

import numpy as np

from create_jax.report import markdown_table as table

NOTES = """\
An epoch is one pass over all users (pairs, for LightGCN); evaluation ranks all items
for all test queries, the history hidden. Median [least..most] of the repetitions.
Warm-up: the first epoch and the first evaluation, less a usual one of each. Tokens are
positions with a target (pairs, for LightGCN). Memory is the peak resident set of the
side's process, libraries included. `-best` is the peer at its best documented setting;
the docstrings in `benchmarks/speed/sides/` say what each side is and what differs.
"""

GROWTH = """\
Synthetic logs, see `benchmarks/speed/scaling.py`; curves and memory in `scaling.png`.
"""
OTHER_TARGETS = [  # measured apart; links from this folder
    [
        "H200: 100 joint epochs on Beauty",
        "[the goal](../ACCELERATOR.md#beauty)",
        "step `beauty` of [h200.jsonl](../accelerators/h200.jsonl)",
        "**missed** by CREATE",
    ],
    ["SIGKILL at any moment", "the same bits", "`tests/test_resume.py`", "met"],
]


def report(result: dict) -> str:
    machine, command = result["machine"], result["command"]
    parts = [
        "# Beside other libraries",
        f"Written by `{command}`.",
        NOTES.strip(),
    ]
    for name, found in result["data"].items():
        facts, own = found["facts"], found["settings"]
        about = (
            f"{facts['users']:,} users, {facts['items']:,} items, "
            f"{facts['rows']:,} rows with {facts['targets']:,} targets; "
            f"{facts['queries']:,} queries ({facts['unknown_targets']:,} of an item "
            f"that nobody can know, a miss for all). Length {own['length']}, "
            f"batch {own['batch']}, dropout {own['dropout']}."
        )
        parts += [f"## {name}", about, sides(found["sides"])]
        compared = ratios(found["sides"])
        if compared:
            parts += [f"### Ratios on {name}, of each turn", compared]
    found = result.get("scaling", {})
    if found:
        lines = [[*cells, f"{ratio:.2f}"] for *cells, ratio in growth(found)]
        head = ["ten times", "from", "to", "seconds", "times"]
        parts += ["## Growth", GROWTH.strip(), table(head, lines)]
    parts += ["## Target beside measured", targets(result["data"], found)]
    settings = ", ".join(f"{k} {v}" for k, v in result["settings"].items())
    surroundings = [
        f"* {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"* commit {result['commit']}, {result['date']}",
        f"* `{command}`",
        f"* all sides: {settings}; {result['repetitions']} repetitions",
        *(f"* {line}" for line in versions(result["data"])),
    ]
    parts += ["## Machine and versions", "\n".join(surroundings)]
    return "\n\n".join(parts) + "\n"


def seconds(answers: list[dict]) -> np.ndarray:
    return np.array([answer["seconds"] for answer in answers])


def spread(values) -> str:
    low, middle, high = (
        f"{value:.3g}" if value < 100 else f"{value:.0f}"
        for value in (np.min(values), np.median(values), np.max(values))
    )
    return f"{middle} [{low}..{high}]"


def sides(found: dict) -> str:
    head = [
        *("side", "epoch, s", "tokens/s", "evaluation, s"),
        *("memory, GiB", "warm-up, s", "NDCG@10", "epochs"),
    ]
    rows = []
    for side, answers in found.items():
        epochs = seconds(answers["epochs"])
        evaluations = seconds(answers["evaluations"])
        first = answers["warm"]["seconds"], answers["first_evaluation"]["seconds"]
        warm = sum(first) - np.median(epochs) - np.median(evaluations)
        rows.append(
            [
                side,
                spread(epochs),
                f"{answers['epochs'][0]['tokens'] / np.median(epochs):,.0f}",
                spread(evaluations),
                f"{answers['memory']['bytes'] / 2**30:.2f}",
                f"{max(warm, 0.0):.1f}",
                f"{answers['evaluations'][-1]['ndcg']:.4f}",
                1 + len(epochs),
            ]
        )
    return table(head, rows)


def pairs(found: dict, over: str, under: str, what: str = "epochs") -> np.ndarray:
    """Seconds of one side over those of another, turn by turn."""
    return seconds(found[over][what]) / seconds(found[under][what])


def ratios(found: dict) -> str:
    rows = []
    for side in found:
        under = "ours-lightgcn" if side.endswith("lightgcn") else "ours"
        if side.startswith("ours-create"):
            under = "ours"
        if side in ("ours", "ours-lightgcn") or under not in found:
            continue
        each = (spread(pairs(found, side, under, w)) for w in ("epochs", "evaluations"))
        rows.append([f"{side} / {under}", *each])
    return table(["sides", "epoch", "evaluation"], rows) if rows else ""


def growth(found: dict) -> list[list]:
    """[what, from, to, seconds, ratio of them] from each size to the next."""
    rows = []
    for sweep, what, size, names in (
        ("log", "rows loaded", "rows", ("load",)),
        ("log", "rows packed for an epoch", "rows", ("layout", "pack")),
        ("items", "items of the softmax of 4,096 tokens", "items", ("step",)),
        ("edges", "edges, a step of LightGCN over all", "rows", ("step",)),
    ):
        good = [one for one in found.get(sweep, []) if "error" not in one]
        for small, large in zip(good, good[1:], strict=False):
            before, after = (sum(one[name] for name in names) for one in (small, large))
            ratio = after / before
            ends = f"{small[size]:,}", f"{large[size]:,}"
            times = f"{before:.3g} -> {after:.3g}"
            rows.append([what, *ends, times, ratio])
    return rows


def targets(data: dict, scaling: dict) -> str:
    """The table of targets that this run measured."""
    rows = []

    def row(text, target, values, more):
        """more: met if at least the target; otherwise if at most."""
        middle = np.median(values)
        met = middle >= target if more else middle <= target
        rows.append([text, f"{'>=' if more else '<='} {target:g}", spread(values), met])

    # The small data are used only without others, to test the harness.
    beauty = "quickstart" if set(data) == {"quickstart"} else "beauty"
    small = data.get(beauty, {}).get("sides", {})
    for side, times in (("rectools", 20), ("replay", 15), ("replay-best", 8)):
        if side in small:
            text = f"SASRec, {beauty}: epoch of {side} over ours"
            row(text, times, pairs(small, side, "ours"), more=True)
    long = data.get("ml1m", {}).get("sides", {})
    peers = [side for side in long if side.startswith(("rectools", "replay"))]
    if peers:
        fastest = min(peers, key=lambda side: np.median(seconds(long[side]["epochs"])))
        text = f"SASRec, ml1m: epoch of the fastest peer ({fastest}) over ours"
        row(text, 3, pairs(long, fastest, "ours"), more=True)
    for side, graph, times in (
        ("ours-create", "UltraGCN", 1.3),
        ("ours-create-lightgcn", "LightGCN, 2 layers", 2),
    ):
        if side in small:
            text = f"CREATE joint step over SASRec step, {beauty}: {graph}"
            row(text, times, pairs(small, side, "ours"), more=False)
    if "ours" in small:
        share = seconds(small["ours"]["evaluations"]) / np.median(
            seconds(small["ours"]["epochs"])
        )
        row(f"evaluation over epoch, ours, {beauty}", 0.1, share, more=False)
    for one in scaling.get("items", []):
        if one["items"] == 10**6 and "error" not in one:
            beyond = (one["peak"] - one["base"] - one["state"]) / 2**30
            text = "full softmax, 1,000,000 items: GiB beyond tables and moments"
            row(text, 1, [beyond], more=False)
    if scaling:
        grown = growth(scaling)
        what, start, end, *_, ratio = max(grown, key=lambda line: line[-1])
        text = f"10 times the rows, items or edges, the worst: {what}, {start} to {end}"
        row(text, 11, [ratio], more=False)
    lines = [[*cells, "met" if met else "**missed**"] for *cells, met in rows]
    lines += OTHER_TARGETS
    return table(["what", "target", "measured", ""], lines)


def versions(data: dict) -> list[str]:
    """A line for each environment; sides with the same one share it."""
    found = {}
    for one in data.values():
        for side, answers in one["sides"].items():
            library = side.split("-")[0]
            found[library] = dict(answers["ready"]["versions"])
            if "device" in answers["ready"]:
                found[library]["on"] = answers["ready"]["device"]
    return [
        f"{library}: " + ", ".join(f"{name} {v}" for name, v in packages.items())
        for library, packages in found.items()
    ]

"""Results as a table for people."""

COLUMNS = ("ndcg", "recall", "mrr", "coverage")


def show(results: list[dict]) -> None:
    """Prints the test metrics of runs of one data set, in percent."""
    print(table(results))


def table(results: list[dict]) -> str:
    """One line a run and target; metrics in percent, the protocol above them."""
    first = results[0]
    protocol, data = first["protocol"], first["data"]
    ks = protocol["ks"]
    names = [f"{column}@{k}" for k in ks for column in COLUMNS]
    names = [name for name in names if name in first["test"]]
    head = ["method", "target", *names]
    rows = [
        [result["method"], target, *(f"{100 * metrics[name]:.2f}" for name in names)]
        for target in first["test_by_target"]
        for result in results
        for metrics in [result["test_by_target"][target]]
    ]
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    cut = f", q {protocol['q_test']}" if protocol["kind"] == "global_temporal" else ""
    title = (
        f"{first['dataset']}, test, percent ({protocol['kind']}{cut}; "
        f"{data['test_queries']:,} queries with target {protocol['target']}; "
        f"ties {protocol['ties']}; seen items "
        f"{'hidden' if protocol['filter_seen'] else 'ranked'})"
    )
    return "\n".join(["", title, *lines, ""])

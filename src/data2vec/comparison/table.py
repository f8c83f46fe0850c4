"""The tables of a comparison, in Markdown."""

from collections.abc import Iterator, Sequence

from data2vec.comparison.result import DEV, ArmResult, Comparison, Row


def format_tables(comparison: Comparison) -> str:
    """The summary, a table of the arms, and one of each evaluation by its selecting metric, with paired differences."""
    parts = [f"Test sets, {SUMMARY_NOTE}.\n\n{markdown(*summary_table(comparison))}"] if comparison.rows else []
    parts.append(markdown(HEAD, [arm_cells(arm) for arm in comparison.arms]))
    for name, note, head, rows in evaluation_tables(comparison):
        parts.append(f"{name}: {note}\n\n{markdown(head, rows)}")
    failed = [f"- {arm.name}: {folder}: {reason}" for arm in comparison.arms for folder, reason in arm.failed.items()]
    if failed:
        parts.append("Failed:\n\n" + "\n".join(failed))
    parts.append("Run an arm again:\n\n" + "\n".join(f"    {arm.command}" for arm in comparison.arms))
    return "\n\n".join(parts) + "\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with aligned columns."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


HEAD = ("arm", "chosen settings", "steps", "FLOPs per step", "FLOPs", "seconds", "state")
"""Of the table of arms."""


def arm_cells(arm: ArmResult) -> list[str]:
    """The cells of an arm: name, chosen settings, steps, operations a step and a run, seconds, state."""
    finetuning = [text for name, each in arm.finetuning.items() if (text := _settings(each["settings"]))]
    chosen = "; ".join([*([text] if (text := _settings(arm.settings)) else []), *finetuning]) or "–"
    state = "failed" if arm.failed else "done"
    state = f"{arm.missing} jobs missing" if arm.missing and not arm.failed else state
    seconds = f"{sum(arm.seconds.values()) / len(arm.seconds):.0f}" if arm.seconds else "–"
    costs = [f"{value:.3g}" if value is not None else "–" for value in (arm.flops_per_step, arm.flops)]
    return [arm.name, chosen, f"{arm.steps}" if arm.steps else "–", *costs, seconds, state]


def _settings(combination: dict[str, object] | None) -> str:
    return ", ".join(f"{key}={value}" for key, value in (combination or {}).items())


SUMMARY_NOTE = "mean ± standard error over the seeds"


def summary_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table with a line for each arm and a column for each test set, by the selecting metric."""
    found: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    selecting = {row.evaluation: row.metric for row in reversed(comparison.rows)}
    for row in comparison.rows:
        if row.set == DEV or row.metric != selecting[row.evaluation]:
            continue
        name = row.evaluation if row.set == "test" else f"{row.evaluation}, {row.set}"
        columns[title := f"{name}: {row.metric}"] = None
        found.setdefault(row.arm, {})[title] = score_cells(row)[0]
    return ["arm", *columns], [[arm, *(cells.get(title, "–") for title in columns)] for arm, cells in found.items()]


def evaluation_tables(comparison: Comparison) -> Iterator[tuple[str, str, list[str], list[list[str]]]]:
    """For each evaluation: its name, a note, the head and the rows of a table of its selecting metric."""
    for name in dict.fromkeys(row.evaluation for row in comparison.rows):
        yield name, *_evaluation_table([row for row in comparison.rows if row.evaluation == name], comparison)


def _evaluation_table(rows: Sequence[Row], comparison: Comparison) -> tuple[str, list[str], list[list[str]]]:
    metric = rows[0].metric
    sets = list(dict.fromkeys(row.set for row in rows))
    head = ["arm", *(title for each in sets for title in (each, f"{each}: difference"))]
    cells = []
    for arm in dict.fromkeys(row.arm for row in rows):
        found = {row.set: row for row in rows if row.arm == arm and row.metric == metric}
        shown = [cell for each in sets for cell in score_cells(found.get(each))]
        cells.append([arm, *shown])
    better = "higher" if rows[0].higher_is_better else "lower"
    note = (
        f"{metric}, {better} is better; mean ± standard error over seeds {', '.join(map(str, comparison.seeds))}; "
        f"paired difference to {comparison.reference!r}. Choices are made on {DEV}."
    )
    return note, head, cells


def score_cells(row: Row | None) -> tuple[str, str]:
    """The mean and the difference to the reference, each with its standard error."""
    if row is None:
        return "–", "–"
    return _with_error(row.mean, row.stderr, ""), _with_error(row.difference, row.difference_stderr, "+")


def _with_error(value: float | None, error: float | None, sign: str) -> str:
    if value is None:
        return "–"
    return f"{value:{sign}.4f}" + (f" ± {error:.4f}" if error is not None else "")

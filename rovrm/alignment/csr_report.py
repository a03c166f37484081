"""The report of `rovrm.csr`: report.json, report.html and curves.svg, written anew after every iteration.

    write_report(Path("runs/csr"), summaries)       # summaries: what `make_pairs` says of each iteration

The page shows, per iteration, how many prompts gave a pair and why others did not, what chosen and rejected answers are
like, and examples with their pictures: those whose rewards are furthest apart, and those closest. It stands alone but
for curves.svg beside it.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from rovrm.alignment.csr_pairs import REASONS
from rovrm.common.files import read_jsonl, write_json
from rovrm.data.messages import text_of

TEMPLATE = "csr_report.html.jinja"  # beside this file
SHOWN = 6  # pairs of an iteration that are furthest apart, and as many that are closest
LARGEST = 320  # pixels of a picture's longer side on the page


def write_report(out: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """Writes the report of a run's iterations so far. out: the run's folder."""
    write_json(out / "report.json", {f"iter{i}": summary for i, summary in enumerate(summaries, start=1)})
    _plot_curves(out / "curves.svg", summaries)
    iterations = []
    for number, summary in enumerate(summaries, start=1):
        rows = sorted(read_jsonl(out / f"iter{number}" / "pairs.jsonl"), key=lambda row: -_gap(row))
        shown = rows if len(rows) <= 2 * SHOWN else rows[:SHOWN] + rows[-SHOWN:]
        iterations.append({"summary": summary, "examples": [_example(row) for row in shown]})
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    text = environment.get_template(TEMPLATE).render(iterations=iterations, reasons=REASONS)
    (out / "report.html").write_text(text, encoding="utf-8")


def _gap(row: dict[str, Any]) -> float:
    return row["score_chosen"] - row["score_rejected"]


def _example(row: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a pair."""
    return {
        "pictures": [_png(path) for path in row["images"]],
        "prompt": text_of(row["prompt"][-1]["content"]),
        "chosen": row["chosen"][0]["content"],
        "rejected": row["rejected"][0]["content"],
        "rewards": (row["score_chosen"], row["score_rejected"]),
    }


def _png(path: str) -> str:
    """A picture as base64, made small."""
    file = io.BytesIO()
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((LARGEST, LARGEST))
        small.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _plot_curves(path: Path, summaries: Sequence[dict[str, Any]]) -> None:
    """Writes as SVG, over iterations, what chosen and rejected answers are like: a panel for each of their means."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names = list(summaries[0]["chosen"])
    columns = 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3 * columns, 2.4 * rows), layout="constrained")
    numbers = range(1, len(summaries) + 1)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, place, xlabel="iteration", title=name)
        axes.set_xticks(numbers)
        for side, colour, marker, style in (("chosen", "#1769aa", "o", "-"), ("rejected", "#a01818", "s", ":")):
            values = [summary[side][name] for summary in summaries]
            axes.plot(numbers, values, color=colour, marker=marker, linestyle=style, label=side)
        if place == 1:
            axes.legend(frameon=False)
    with rc_context({"svg.hashsalt": "rovrm", "svg.fonttype": "none"}):  # the same numbers, the same bytes
        FigureCanvasSVG(figure).print_svg(str(path), metadata={"Date": None})

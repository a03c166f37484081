"""report.html of best-of-n where the truth is known: what was found, and pictures with all their answers.

    write_report(Path("runs/demo/bon"), phases, examples, records, verdicts, choices)

Every false fact has a tag that says what was said and what is; every mark is a sign and a word beside its colour. The
page stands alone (but for curve.svg beside it) and fits a telephone. Its template is world_page.html.jinja.
"""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from rovrm.best_of_n.world_table import CHOICES, best_by_oracle, verdict_lines
from rovrm.common.intervals import share_in_words
from rovrm.data.example import Example
from rovrm.data.messages import text_of
from rovrm.world.language import article
from rovrm.world.oracle import Verdict
from rovrm.world.scenes import Scene, Thing

TEMPLATE = "world_page.html.jinja"  # beside this file
SCALE = 4  # of the pictures on the page: 288 x 288 pixels
COMPARISONS = ("larger", "smaller", "higher", "lower", "further left", "further right")


def write_report(
    out: Path,
    phases: dict[str, dict[str, Any]],
    examples: Sequence[Example],
    records: Sequence[dict[str, Any]],
    verdicts: list[list[Verdict]],
    choices: dict[str, Any],
    scenes: int = 20,
) -> Path:
    """Writes report.html: a headline, both tables and some pictures with all their answers and rewards.

    Args:
        out: the folder to write into.
        phases: summary.json of the training that the reward model is of; empty where it is not known.
        examples: the prompts.
        records: those of bon.jsonl.
        verdicts: per prompt those of the candidates, and last that of the greedy answer.
        choices: what `compare_choices` found.
        scenes: how many pictures to show: first those where the reward model gained most over greedy decoding, last
            those where it was most wrong.

    Returns:
        The page's path.
    """
    gains = [_gain(of_prompt, record) for of_prompt, record in zip(verdicts, records, strict=True)]
    places = sorted(range(len(records)), key=lambda i: -gains[i])
    if len(places) > scenes:
        half = scenes // 2
        places = places[:half] + places[len(places) - half :]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    text = environment.get_template(TEMPLATE).render(
        share_in_words=share_in_words,
        headline=headline(choices),
        lines=verdict_lines(choices),
        choices=choices,
        labels=CHOICES,
        phases=phases,
        scenes=[_scene(examples[i], records[i], verdicts[i]) for i in places],
    )
    path = out / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def headline(choices: dict[str, Any]) -> str:
    """What was found, in one sentence."""
    false = {name: f"{rates['false']:.1%}" for name, rates in choices["rates"].items()}
    return (
        f"The best of {choices['n']} answers, chosen by the reward model, says something false about {false['reward']} "
        f"of {choices['prompts']} pictures; one of the {choices['n']} at random does so about {false['mean']}, greedy "
        f"decoding about {false['greedy']}, and no choice could do better than {false['oracle']}."
    )


# ---- a false fact in words -------------------------------------------------------------------------------------------


def explain(fact: tuple, scene: Scene) -> str:
    """A false fact of the oracle (rovrm/world/oracle.py lists its forms) in words: what was said, and what is."""
    head, *rest = fact
    if head == "some":
        what = _in_words(rest)
        return f"said there is {article(what)} {what}, there is none"
    if head == "no":
        return f"said there is no {_in_words(rest)}, there is"
    if head == "count":
        number, *pairs = rest
        return f"count of {_in_words(pairs)}: said {number}, is {_number_with(pairs, scene)}"
    if head in COMPARISONS:
        winner, loser = rest
        return f"said the {winner} is {head} than the {loser}, it is not"
    name, value = rest
    return _explain_attribute(head, name, value, scene)


def _explain_attribute(kind: str, name: str, value: str, scene: Scene) -> str:
    """As `explain`, of a fact about the thing of one kind. name: an attribute, or "not" and an attribute."""
    if name == "kind":
        return f"{kind}: said to be there, there is none"
    of_kind = [thing for thing in scene.things if thing.kind == kind]
    if not of_kind and kind == "thing":  # the answer does not say what it is
        return f"{name}: said {value}, nothing is"
    if not of_kind:
        return f"{kind}, {name}: said {value}, there is none"
    attribute = name.removeprefix("not ")
    said = value if attribute == name else f"not {value}"
    return f"{kind}, {attribute}: said {said}, is {getattr(of_kind[0], attribute)}"


def _number_with(pairs: Sequence[tuple[str, str]], scene: Scene) -> int:
    """How many things of the scene have all these attributes."""
    return sum(all(_has(thing, name, value) for name, value in pairs) for thing in scene.things)


def _has(thing: Thing, name: str, value: str) -> bool:
    """As the oracle counts: on the left is whatever is in a place on the left."""
    return value == getattr(thing, name) or (name == "place" and value in thing.place.split())


def _in_words(pairs: Sequence[tuple[str, str]]) -> str:
    """Attributes as one would say them: large red circle, top left."""
    attributes = {"kind": "thing"} | dict(pairs)
    words = " ".join(attributes[name] for name in ("size", "colour", "kind") if name in attributes)
    return words + (f", {attributes['place']}" if "place" in attributes else "")


# ---- pictures --------------------------------------------------------------------------------------------------------


def _gain(verdicts: list[Verdict], record: dict[str, Any]) -> float:
    """False facts saved against greedy decoding. For a candidate with fewer false facts that was passed over, half of
    the difference is taken off."""
    *of_candidates, of_greedy = verdicts
    chosen = len(of_candidates[record["best"]].hallucinated)
    greedy = len(of_greedy.hallucinated)
    best = len(of_candidates[best_by_oracle(of_candidates)].hallucinated)
    return greedy - chosen - 0.5 * (chosen - best)


def _scene(example: Example, record: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]:
    """What the page shows of one picture: equal answers once, the chosen one first, the others by reward."""
    drawing: Any = example.images[0].drawing
    *of_candidates, of_greedy = verdicts
    count = Counter(record["candidates"])
    answers: dict[str, dict[str, Any]] = {}
    for text, score, verdict in zip(record["candidates"], record["scores"], of_candidates, strict=True):
        answers[text] = _answer(text, score, verdict, drawing.scene) | {"count": count[text], "chosen": False}
    answers[record["candidates"][record["best"]]]["chosen"] = True
    shown = sorted(answers.values(), key=lambda answer: (not answer["chosen"], -answer["score"]))
    things = "; ".join(f"{t.size} {t.colour} {t.kind}, {t.place}" for t in drawing.scene.things)
    return {
        "picture": _png(drawing),
        "alt": f"in the picture: {things}",
        "prompt": text_of(example.prompt[-1]["content"]),
        "answers": shown,
        "why": _why(shown),
        "greedy": _answer(record["greedy"]["text"], record["greedy"]["score"], of_greedy, drawing.scene),
    }


def _png(drawing: Any) -> str:
    """The picture as base64."""
    file = io.BytesIO()
    drawing(SCALE).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _answer(text: str, score: float, verdict: Verdict, scene: Scene) -> dict[str, Any]:
    # By thing; that a thing is not there comes before what was said of it.
    facts = sorted(verdict.hallucinated, key=lambda fact: (str(fact[0]), fact[1] != "kind", str(fact)))
    return {"text": text, "score": score, "parsed": verdict.parsed, "wrong": [explain(fact, scene) for fact in facts]}


def _why(answers: list[dict[str, Any]]) -> str:
    """Why the first of these answers was chosen, and what it missed."""
    first, *others = answers
    if not others:
        return f"the only answer: all {first['count']} candidates say the same"
    # Another with a higher reward can only be an empty one: those stand below all others.
    rivals = [answer["score"] for answer in others if answer["score"] <= first["score"]]
    reason = f"its reward, {first['score']:+.2f}, is the highest of {len(rivals) + 1} different answers"
    if rivals:
        reason += f" (the next: {max(rivals):+.2f})"
    if len(rivals) < len(others):
        reason += "; an empty one with more was passed over"
    better = [answer for answer in others if answer["parsed"] and not answer["wrong"]]
    if better and (first["wrong"] or not first["parsed"]):
        reason += f"; a true answer was there, with {better[0]['score']:+.2f}"
    return reason

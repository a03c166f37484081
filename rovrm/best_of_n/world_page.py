"""report.html of best-of-n where the truth is known: what was found, and pictures with all their answers.

    write_report(Path("runs/demo/bon"), "runs/demo/phase3-visual", examples, rows, judged, choices)

Every false fact has a tag that says what was said and what is; every mark is a sign and a word beside its colour. The
page stands alone (but for curve.svg beside it) and fits a telephone.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from rovrm.best_of_n.world_table import CHOICES, best_by_oracle, verdict_lines
from rovrm.common.intervals import share_in_words
from rovrm.data.example import Example
from rovrm.data.messages import text_of
from rovrm.world.oracle import Verdict
from rovrm.world.scenes import Scene, Thing

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>rovrm: best of {{ choices.n }}</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:1rem auto;padding:0 .8rem;color:#222}
h1{font-size:1.4rem;line-height:1.3}h2{font-size:1.15rem;margin-top:2rem}img{max-width:100%;height:auto}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left;padding-left:0}th{vertical-align:bottom;font-size:.85rem}
dl{display:grid;grid-template-columns:auto 1fr;gap:.3rem .8rem}dt{white-space:nowrap}dd{margin:0}
.scene{display:flex;flex-wrap:wrap;gap:.5rem 1.25rem;border-top:1px solid #ccc;padding:1rem 0}
.scene>div{flex:1 1 20rem;min-width:0}.scene>img{width:180px;height:180px;border:1px solid #ccc}
ol{list-style:none;margin:0;padding:0}li{padding:.3rem .5rem;border-left:4px solid transparent}
.chosen{border-color:#222;background:#f3f3ee;margin-bottom:.3rem}.score{font-variant-numeric:tabular-nums}
.true{color:#145a25}.false{color:#a01818}.tag{display:inline-block;border:1px solid #a01818;border-radius:3px;
padding:0 .35rem;margin:.1rem .2rem .1rem 0;font-size:.85rem;color:#a01818;background:#fff}small,.why{color:#555}
@media(max-width:30rem){body{font-size:14px}td,th{padding:.25rem .3rem}.scene>img{width:144px;height:144px}}
</style>
{%- macro mark(answer) %}
{% if not answer.parsed %}<b class="false">? unreadable</b>
{% elif answer.wrong %}<b class="false">✗ {{ answer.wrong | length }} false</b>
{% else %}<b class="true">✓ true</b>{% endif %}
{% endmacro %}
{%- macro tags(answer) %}{% for fact in answer.wrong %}<span class="tag">{{ fact }}</span> {% endfor %}{% endmacro %}
<h1>{{ headline }}</h1>
<p>{% for line in lines %}{{ line[0] | upper }}{{ line[1:] }}.<br>{% endfor %}</p>
<table><tr><th>answer<th>hallu&shy;cinates<th>false facts<th>cover&shy;age<th>unread&shy;able</tr>
{% for name, rates in choices.rates.items() %}
<tr><td>{{ labels[name].format(n=choices.n) }}
{%- for key in ("false", "false_facts", "coverage", "unreadable") %}
<td>{{ "%.3f" | format(rates[key]) }}{% endfor %}</tr>
{% endfor %}</table>
<img src="curve.svg" alt="Reward and hallucinations of the best of n, over n">
{% if phases %}<h2>The reward model</h2>
<table><tr><th>phase<th>trained on<th>held-out accu&shy;racy<th>loss</tr>
{% for name, record in phases.items() %}
<tr><td>{{ name }}<td>{{ record.n_train }}<td>{{ share_in_words(record.accuracy, record.n_held_out) }}
<td>{{ "%.3f" | format(record.loss) }}</tr>
{% endfor %}</table>{% endif %}
<h2>Pictures and answers</h2>
<dl><dt>★ chosen<dd>the answer with the highest reward, on top
<dt><b class="true">✓ true</b><dd>nothing in the answer is false, says the oracle, which knows the picture
<dt><b class="false">✗ 2 false</b><dd>two facts in it are false, each with a tag:
<span class="tag">star, colour: said red, is blue</span>
<dt><b class="false">? unreadable</b><dd>the oracle finds no fact in it; counted as false
<dt>+1.25<dd>the reward; answers stand in its order, equal ones once (2×: said twice)</dl>
<p><small>First the pictures where choosing gained most over greedy decoding, last those where it was most wrong:
{{ scenes | length }} of {{ choices.prompts }}.</small></p>
{% for scene in scenes %}
<div class="scene"><img src="data:image/png;base64,{{ scene.picture }}" alt="{{ scene.alt }}">
<div><p>{{ scene.prompt }}</p>
<ol>{% for answer in scene.answers %}
<li{% if answer.chosen %} class="chosen"{% endif %}>{% if answer.chosen %}★ chosen {% endif %}{{ mark(answer) }}
<span class="score">{{ "%+.2f" | format(answer.score) }}</span> {{ answer.text or "(empty)" }}
{% if answer.count > 1 %}<small>{{ answer.count }}×</small>{% endif %} {{ tags(answer) }}
{% if answer.chosen %}<div class="why">{{ scene.why }}</div>{% endif %}</li>
{% endfor %}
<li><small>greedy decoding:</small> {{ mark(scene.greedy) }}
<span class="score">{{ "%+.2f" | format(scene.greedy.score) }}</span> {{ scene.greedy.text or "(empty)" }}
{{ tags(scene.greedy) }}</li></ol></div></div>
{% endfor %}
</html>
"""


def write_report(
    out: Path,
    model: str,
    examples: Sequence[Example],
    rows: Sequence[dict[str, Any]],
    judged: list[list[Verdict]],
    choices: dict[str, Any],
    scenes: int = 20,
) -> Path:
    """Writes report.html into `out`: a headline, both tables and `scenes` pictures with all their answers and rewards;
    first those where the reward model gained most over greedy decoding, then those where it was most wrong."""
    gains = [_gain(verdicts, row) for verdicts, row in zip(judged, rows, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -gains[i])
    shown = [*order[: scenes // 2], *order[len(order) - scenes // 2 :]] if len(order) > scenes else order
    phases = Path(model).parent / "summary.json"
    page = Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    text = page.render(
        share_in_words=share_in_words,
        headline=headline(choices),
        lines=verdict_lines(choices),
        choices=choices,
        labels=CHOICES,
        phases=json.loads(phases.read_text()) if phases.is_file() else {},  # of the run that the reward model is of
        scenes=[_scene(examples[i], rows[i], judged[i]) for i in shown],
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


def explain(fact: tuple, scene: Scene) -> str:
    """A false fact of the oracle in words: what was said, and what is."""
    head, *rest = fact
    if head in ("some", "no"):
        what = _description(rest)
        if head == "no":
            return f"said there is no {what}, there is"
        return f"said there is {'an' if what[0] in 'aeiou' else 'a'} {what}, there is none"
    if head == "count":
        number = sum(all(_has(thing, *pair) for pair in rest[1:]) for thing in scene.things)
        return f"count of {_description(rest[1:])}: said {rest[0]}, is {number}"
    if head in ("larger", "smaller", "higher", "lower", "further left", "further right"):
        return f"said the {rest[0]} is {head} than the {rest[1]}, it is not"
    name, value = rest
    found = next((thing for thing in scene.things if thing.kind == head), None)
    if name == "kind":
        return f"{head}: said to be there, there is none"
    if found is None and head == "thing":  # of which the answer does not say what it is
        return f"{name}: said {value}, nothing is"
    if found is None:
        return f"{head}, {name}: said {value}, there is none"
    plain = name.removeprefix("not ")
    return f"{head}, {plain}: said {'not ' if plain != name else ''}{value}, is {getattr(found, plain)}"


def _has(thing: Thing, name: str, value: str) -> bool:
    """As the oracle counts: on the left is whatever is in a place on the left."""
    return value == getattr(thing, name) or (name == "place" and value in thing.place.split())


def _description(pairs: Sequence[tuple[str, str]]) -> str:
    """Attributes as one would say them: large red circle, top left."""
    given = {"kind": "thing"} | dict(pairs)
    named = " ".join(given[name] for name in ("size", "colour", "kind") if name in given)
    return named + (f", {given['place']}" if "place" in given else "")


def _gain(verdicts: list[Verdict], row: dict[str, Any]) -> float:
    """False facts saved against greedy decoding; a candidate without false facts that was passed over costs half."""
    places = (row["best"], -1, best_by_oracle(verdicts[:-1]))
    chosen, greedy, best = (len(verdicts[i].hallucinated) for i in places)
    return greedy - chosen - 0.5 * (chosen - best)


def _scene(example: Example, row: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]:
    """What the page shows of one picture. Equal answers stand once."""
    drawing: Any = example.images[0].drawing
    stored = io.BytesIO()
    drawing(4).save(stored, "PNG")
    said = Counter(row["candidates"])
    found = dict(zip(row["candidates"], zip(row["scores"], verdicts, strict=False), strict=True))
    answers = [_answer(text, *found[text], drawing.scene) | {"count": count} for text, count in said.items()]
    for answer in answers:
        answer["chosen"] = answer["text"] == row["candidates"][row["best"]]
    answers.sort(key=lambda answer: (not answer["chosen"], -answer["score"]))
    things = "; ".join(f"{t.size} {t.colour} {t.kind}, {t.place}" for t in drawing.scene.things)
    return {
        "picture": base64.b64encode(stored.getvalue()).decode(),
        "alt": f"in the picture: {things}",
        "prompt": text_of(example.prompt[-1]["content"]),
        "answers": answers,
        "why": _why(answers),
        "greedy": _answer(row["greedy"]["text"], row["greedy"]["score"], verdicts[-1], drawing.scene),
    }


def _answer(text: str, score: float, verdict: Verdict, scene: Scene) -> dict[str, Any]:
    facts = sorted(verdict.hallucinated, key=lambda fact: (str(fact[0]), fact[1] != "kind", str(fact)))
    wrong = [explain(fact, scene) for fact in facts]  # that a thing is not there comes before what was said of it
    return {"text": text, "score": score, "parsed": verdict.parsed, "wrong": wrong}


def _why(answers: list[dict[str, Any]]) -> str:
    """Why the first of these answers was chosen, and what it missed."""
    first, *others = answers
    if not others:
        return f"the only answer: all {first['count']} candidates say the same"
    rivals = [answer["score"] for answer in others if answer["score"] <= first["score"]]
    told = f"its reward, {first['score']:+.2f}, is the highest of {len(rivals) + 1} different answers"
    told += f" (the next: {max(rivals):+.2f})" if rivals else ""
    told += "; an empty one with more was passed over" if len(rivals) < len(others) else ""
    better = [answer for answer in others if answer["parsed"] and not answer["wrong"]]
    if better and (first["wrong"] or not first["parsed"]):
        told += f"; a true answer was there, with {better[0]['score']:+.2f}"
    return told

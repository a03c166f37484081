"""OpenRLHF's requests: rendered texts, cut back into prompts and answers by the chat template."""

import re
from itertools import groupby
from typing import Any, NamedTuple

from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.data.messages import PLACEHOLDER
from rovrm.model.scorer import RewardScorer
from rovrm.serving.requests import ANSWERED, ASKED, Refusal

# ---- OpenRLHF --------------------------------------------------------------------------------------------------------


class Template(NamedTuple):
    """What the model's chat template writes around a question and its answer, and for an image."""

    head: str
    middle: str
    ends: tuple[str, ...]
    image: str
    image_token: str
    special: tuple[str, ...]


def look_at_template(scorer: RewardScorer) -> Template:
    chat, tokenizer = scorer.collator.chat, scorer.collator.tokenizer

    def rendered(content: Any, images: list[ImageRef]) -> str:
        question = [{"role": "user", "content": content}]
        return chat.conversations(Example("", "", question, [ANSWERED], [0], images))[0]

    head, _, rest = rendered(ASKED, []).partition(ASKED)
    middle, _, end = rest.partition(ANSWERED)
    image = token = ""
    if scorer.collator.image_token_id >= 0:
        token = tokenizer.convert_ids_to_tokens(scorer.collator.image_token_id)
        blocks = [{"type": "image"}, {"type": "text", "text": ASKED}]
        image = rendered(blocks, [ImageRef()]).removeprefix(head).split(ASKED)[0]
    ends = tuple(text for text in (end.strip(), tokenizer.eos_token, tokenizer.pad_token, *" \n\r\t") if text)
    special = tuple(text for text in tokenizer.all_special_tokens if text not in (token, "<image>"))
    return Template(head, middle.rstrip(), ends, image, token, special)


def openrlhf_rows(
    query: list[str], prompts: list[str], images: list[None | str | list[str]] | None, template: Template
) -> list[dict[str, Any]]:
    """Rows of OpenRLHF's remote reward request (see rovrm.serve); neighbours with the same prompt and images share one.
    Raises Refusal."""
    given: list[Any] = [None] * len(query) if images is None else images
    for name, values in (("prompts", prompts), ("images", given)):
        if len(values) != len(query):
            raise Refusal(422, f"{name}: {len(values)} entries for {len(query)} of query; send one for each")
    listed = [[images] if isinstance(images, str) else images for images in given]
    cut = []
    for i, (text, prompt) in enumerate(zip(query, prompts, strict=True)):
        question, response = _cut(text, prompt, i, template)
        cut.append((_one_for_each(question, prompt, len(listed[i] or ()), i, template), response, listed[i]))
    rows = []
    for (prompt, pictures), same in groupby(enumerate(cut), lambda item: (item[1][0], item[1][2])):
        many = list(same)
        row = {"id": f"query[{many[0][0]}]", "prompt": prompt, "images": pictures}
        rows.append(row | {"responses": [response for _, (_, response, _) in many]})
    return rows


def _cut(query: str, prompt: str, i: int, template: Template) -> tuple[str, str]:
    """(question, response) without what a chat template has written around them."""
    if template.image_token:  # decoded from expanded tokens a query has hundreds of them for one image
        query, prompt = (_runs(template).sub(lambda _: template.image_token, text) for text in (query, prompt))
    if not query.startswith(prompt):
        raise Refusal(
            422, f"query[{i}] = {query[:60]!r} does not start with prompts[{i}] = {prompt[:60]!r}, so the response "
            "cannot be cut out; send prompt + response"
        )  # fmt: skip
    stop = len(query)
    while size := next((len(end) for end in template.ends if query.endswith(end, len(prompt), stop)), 0):
        stop -= size
    response = query[len(prompt) : stop].lstrip()
    bare = prompt.rstrip()
    if bare.startswith(template.head) and bare.endswith(template.middle):
        bare = bare[len(template.head) : len(bare) - len(template.middle)]
        return bare.replace(template.image, "<image>") if template.image else bare, response
    if other := next((token for token in template.special if token in prompt), None):
        raise Refusal(
            422, f"prompts[{i}] = {prompt[:60]!r} holds {other!r} and is not in this model's chat template; send the "
            "plain question, or messages to /score"
        )  # fmt: skip
    return prompt, response


def _runs(template: Template) -> re.Pattern:
    return re.compile(f"(?:{re.escape(template.image_token)})+")


def _one_for_each(question: str, prompt: str, count: int, i: int, template: Template) -> str:
    """The question with `count` placeholders where it has fewer: it has one for each run of image tokens in the prompt,
    and adjacent images, expanded, are one run. Raises Refusal where nothing tells which runs hold several images."""
    parts = question.split("<image>")
    places = len(parts) - 1
    numbered = any(PLACEHOLDER.findall(question))  # <image 2>: the text says which
    if numbered or not 0 < places < count:
        return question
    runs = _runs(template).findall(prompt) if template.image_token else []
    sizes = [len(run) // len(template.image_token) for run in runs]
    if len(sizes) != places or sum(sizes) != count:  # not one token for each image
        sizes = [count]
    if len(sizes) != places:
        raise Refusal(
            422, f"prompts[{i}] = {prompt[:60]!r} has {places} places for {count} images, and nothing tells which of "
            "them holds several; send one <image> for each image, or messages to /score"
        )  # fmt: skip
    return parts[0] + "".join("<image>" * size + part for size, part in zip(sizes, parts[1:], strict=True))

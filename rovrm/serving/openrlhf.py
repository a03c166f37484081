"""OpenRLHF's requests: rendered texts, cut back into prompts and answers by the chat template.

Once a model, then once a request:

    template = look_at_template(scorer)
    rows = openrlhf_rows(["USER: Hi\nASSISTANT: Yes.</s>"], ["USER: Hi\nASSISTANT:"], None, template)
    rows[0]["prompt"], rows[0]["responses"]        # "Hi", ["Yes."]
"""

import re
from typing import Any, NamedTuple

from rovrm.data.example import Example
from rovrm.data.images import ImageRef
from rovrm.data.messages import PLACEHOLDER
from rovrm.model.scorer import RewardScorer
from rovrm.serving.requests import Refusal

QUESTION, ANSWER = "QUESTIONOFTHEUSER", "ANSWEROFTHEMODEL"  # stand for the texts when a chat template is looked at


class Template(NamedTuple):
    """What the model's chat template writes: `head` QUESTION `middle` ANSWER `ends[0]`.

    head, middle: around the question.
    ends: what may stand behind an answer and is no part of it: the template's own end, eos, padding, white space.
    image: what stands for an image in the question; empty where the model reads none.
    image_token: the token in it that the picture's patches replace; empty where the model reads none.
    special: other special tokens, which a plain question does not hold.
    """

    head: str
    middle: str
    ends: tuple[str, ...]
    image: str
    image_token: str
    special: tuple[str, ...]


def look_at_template(scorer: RewardScorer) -> Template:
    """Renders marked texts and takes the result apart."""
    chat, tokenizer = scorer.collator.chat, scorer.collator.tokenizer

    def rendered(content: Any, images: list[ImageRef]) -> str:
        question = [{"role": "user", "content": content}]
        return chat.conversations(Example("", "", question, [ANSWER], [0], images))[0]

    head, _, rest = rendered(QUESTION, []).partition(QUESTION)
    middle, _, end = rest.partition(ANSWER)
    image = image_token = ""
    if scorer.collator.image_token_id >= 0:
        image_token = tokenizer.convert_ids_to_tokens(scorer.collator.image_token_id)
        blocks = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        image = rendered(blocks, [ImageRef()]).removeprefix(head).split(QUESTION)[0]
    ends = (end.strip(), tokenizer.eos_token, tokenizer.pad_token, *" \n\r\t")
    return Template(
        head=head,
        middle=middle.rstrip(),
        ends=tuple(text for text in ends if text),
        image=image,
        image_token=image_token,
        special=tuple(text for text in tokenizer.all_special_tokens if text not in (image_token, "<image>")),
    )


def openrlhf_rows(
    query: list[str], prompts: list[str], images: list[None | str | list[str]] | None, template: Template
) -> list[dict[str, Any]]:
    """Rows {id, prompt, responses, images} of a remote reward request (see rovrm.serve).

    Neighbours with the same prompt and images share a row, so that both are read once for all their responses.

    Args:
        query: prompt + response, each as one text.
        prompts: the prompts alone, one for each query.
        images: null, one image or several for each query; None for no images at all.
        template: that of the reward model.

    Raises:
        Refusal: the lengths differ, or a query cannot be cut into prompt and response.
    """
    pictures_of: list[Any] = [None] * len(query) if images is None else images
    for name, values in (("prompts", prompts), ("images", pictures_of)):
        if len(values) != len(query):
            raise Refusal(422, f"{name}: {len(values)} entries for {len(query)} of query; send one for each")
    rows: list[dict[str, Any]] = []
    for i, text in enumerate(query):
        pictures = [pictures_of[i]] if isinstance(pictures_of[i], str) else pictures_of[i]
        question, response = _question_and_response(text, prompts[i], i, template)
        question = _with_all_placeholders(question, prompts[i], len(pictures or ()), i, template)
        if rows and (rows[-1]["prompt"], rows[-1]["images"]) == (question, pictures):
            rows[-1]["responses"].append(response)
        else:
            rows.append({"id": f"query[{i}]", "prompt": question, "images": pictures, "responses": [response]})
    return rows


def _question_and_response(query: str, prompt: str, i: int, template: Template) -> tuple[str, str]:
    """Both without what a chat template has written around them. i: the number of the query, for refusals."""
    if template.image_token:  # decoded from expanded tokens a query has hundreds of them for one image
        query = _image_runs(template).sub(lambda _: template.image_token, query)
        prompt = _image_runs(template).sub(lambda _: template.image_token, prompt)
    if not query.startswith(prompt):
        raise Refusal(
            422,
            f"query[{i}] = {query[:60]!r} does not start with prompts[{i}] = {prompt[:60]!r}, so the response cannot "
            "be cut out; send prompt + response",
        )
    response = _without_ends(query[len(prompt) :], template.ends).lstrip()

    bare = prompt.rstrip()
    if bare.startswith(template.head) and bare.endswith(template.middle):
        question = bare[len(template.head) : len(bare) - len(template.middle)]
        return question.replace(template.image, "<image>") if template.image else question, response
    for token in template.special:
        if token in prompt:
            raise Refusal(
                422,
                f"prompts[{i}] = {prompt[:60]!r} holds {token!r} and is not in this model's chat template; send the "
                "plain question, or messages to /score",
            )
    return prompt, response


def _without_ends(text: str, ends: tuple[str, ...]) -> str:
    """The text without any of these behind it, however often they come."""
    stop = len(text)
    while True:
        for end in ends:
            if text.endswith(end, 0, stop):
                stop -= len(end)  # a new copy of a long text for every end would take quadratic time
                break
        else:
            return text[:stop]


def _image_runs(template: Template) -> re.Pattern:
    return re.compile(f"(?:{re.escape(template.image_token)})+")


def _with_all_placeholders(question: str, prompt: str, count: int, i: int, template: Template) -> str:
    """The question with a placeholder for each of `count` images.

    A question has one placeholder for each run of image tokens in the prompt, and adjacent images, once expanded, are
    one run. Raises Refusal where nothing tells which runs hold several images.
    """
    parts = question.split("<image>")
    places = len(parts) - 1
    numbered = any(PLACEHOLDER.findall(question))  # <image 2>: the text says which
    if numbered or not 0 < places < count:
        return question
    runs = _image_runs(template).findall(prompt) if template.image_token else []
    sizes = [len(run) // len(template.image_token) for run in runs]
    if len(sizes) != places or sum(sizes) != count:  # expanded: not one token for each image
        sizes = [count]  # all of them in one place, if there is only one
    if len(sizes) != places:
        raise Refusal(
            422,
            f"prompts[{i}] = {prompt[:60]!r} has {places} places for {count} images, and nothing tells which of them "
            "holds several; send one <image> for each image, or messages to /score",
        )
    filled = parts[0]
    for size, part in zip(sizes, parts[1:], strict=True):
        filled += "<image>" * size + part
    return filled

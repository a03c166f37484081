"""OpenRLHF's requests: texts that a chat template has made of conversations, read as they were sent.

Once a model, then once a request:

    template = look_at_template(scorer)
    rows = openrlhf_rows(["USER: Hi ASSISTANT: Yes.</s>"], ["USER: Hi ASSISTANT:"], None, template)
    rows[0]["prompt"], rows[0]["responses"], rows[0]["rendered"]        # "USER: Hi ", ["Yes."], True

Of a prompt in the model's own template nothing is changed up to where the assistant's turn opens; that turn, with the
answer and its end, is the template's own. A prompt without any sign of the template is a plain question.
"""

import re
from typing import Any, NamedTuple

from rovrm.data.messages import PLACEHOLDER
from rovrm.model.scorer import RewardScorer
from rovrm.serving.requests import Refusal


class Template(NamedTuple):
    """What the model's chat template writes.

    openings: what a prompt in it ends with (`ChatTemplate.openings`).
    signs: what a plain question does not hold: special tokens, and the word by which the template opens a user's turn.
    strange: special tokens that it never writes.
    ends: what may stand behind an answer and is no part of it: the template's own end, eos, padding, white space.
    image: what it writes for an image; placeholder: the token in it that stands for the picture. Empty where the model
        reads none.
    """

    openings: list[str]
    signs: tuple[str, ...]
    strange: tuple[str, ...]
    ends: tuple[str, ...]
    image: str
    placeholder: str


def look_at_template(scorer: RewardScorer) -> Template:
    """What the template of a reward model writes, found by trying it."""
    collator, chat, tokenizer = scorer.collator, scorer.collator.chat, scorer.collator.tokenizer
    image = placeholder = ""
    if collator.image_token_id >= 0:
        image, placeholder = chat.image_text(), tokenizer.convert_ids_to_tokens(collator.placeholder_id)
    own = {placeholder, "<image>"}
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - own
    special |= set(tokenizer.all_special_tokens) - own
    written = f"{scorer.processor.chat_template} {chat.openings()} {chat.ending()} {image} {chat.head()}"
    known = (tokenizer.bos_token, tokenizer.eos_token)
    return Template(
        openings=chat.openings(),
        signs=tuple({*special, *chat.openings(), *chat.head().split()[-1:]}),
        strange=tuple(token for token in special if token not in written and token not in known),
        ends=tuple(t for t in (chat.ending().strip(), tokenizer.eos_token, tokenizer.pad_token, *" \n\r\t") if t),
        image=image,
        placeholder=placeholder,
    )


def openrlhf_rows(
    query: list[str], prompts: list[str], images: list[None | str | list[str]] | None, template: Template
) -> list[dict[str, Any]]:
    """Rows {id, prompt, responses, images, rendered} of a remote reward request (see rovrm.serve).

    Neighbours with the same prompt and images share a row, so that both are read once for all their responses.

    Args:
        query: prompt + response, each as one text.
        prompts: the prompts alone, one for each query.
        images: null, one image or several for each query; None for no images at all.
        template: that of the reward model.

    Raises:
        Refusal: the lengths differ, a query does not start with its prompt, or a prompt is in another template.
    """
    pictures_of: list[Any] = [None] * len(query) if images is None else images
    for name, values in (("prompts", prompts), ("images", pictures_of)):
        if len(values) != len(query):
            raise Refusal(422, f"{name}: {len(values)} entries for {len(query)} of query; send one for each")
    rows: list[dict[str, Any]] = []
    for i, text in enumerate(query):
        pictures = [pictures_of[i]] if isinstance(pictures_of[i], str) else pictures_of[i] or []
        text, prompt = (_unexpanded(given, len(pictures), i, template) for given in (text, prompts[i]))
        if not text.startswith(prompt):
            raise Refusal(
                422,
                f"query[{i}] = {text[:60]!r} does not start with prompts[{i}] = {prompt[:60]!r}, so the response "
                "cannot be cut out; send prompt + response",
            )
        response = _without_ends(text[len(prompt) :], template.ends).lstrip()
        row = {"id": f"query[{i}]", "images": pictures} | _read(prompt, response, len(pictures), i, template)
        if rows and all(rows[-1][key] == row[key] for key in ("prompt", "images", "rendered")):
            rows[-1]["responses"] += row["responses"]
        else:
            rows.append(row)
    return rows


def _read(prompt: str, response: str, count: int, i: int, template: Template) -> dict[str, Any]:
    """{prompt, responses, rendered} of a query with `count` pictures. i: its number, for refusals."""
    shown = f"prompts[{i}] = {prompt[:60]!r}"
    bare = prompt.rstrip()
    opening = next((text for text in template.openings if bare.endswith(text)), None)
    if opening is None:
        if sign := next((text for text in template.signs if text in prompt), ""):
            raise Refusal(
                422,
                f"{shown} holds {sign!r} and is not in this model's chat template, or does not end where an answer "
                "begins; send the plain question, or messages to /score",
            )
        question = prompt.replace(template.placeholder or "<image>", "<image>")
        if not template.openings:  # a template that writes white space alone between question and answer
            question = question.rstrip()
        return {"prompt": question, "responses": [response], "rendered": False}

    front = bare.removesuffix(opening)
    if token := next((text for text in template.strange if text in front), ""):
        raise Refusal(422, f"{shown} holds {token!r}, which this model's chat template never writes; remove it")
    if opening.endswith("<think>") and "<think>" not in response:
        response = f"<think>\n{response}"  # the prompt has opened the thought that the response goes on with
    front = _with_images(front, count, shown, template)
    return {"prompt": front, "responses": [response], "rendered": True}


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


def _unexpanded(text: str, count: int, i: int, template: Template) -> str:
    """A text with one image token for each image: decoded from a policy's tokens, it has one for each patch.

    Adjacent images are one run of tokens. Raises Refusal where nothing tells which runs hold several images.
    """
    if not count or not template.placeholder or text.count(template.placeholder) <= count:
        return text
    runs = re.compile(f"(?:{re.escape(template.placeholder)})+")
    places = len(runs.findall(text))
    if places not in (1, count):
        raise Refusal(
            422,
            f"query[{i}] = {text[:60]!r} has {places} places for {count} images, and nothing tells which of them holds "
            f"several; send one {template.placeholder} for each image, or messages to /score",
        )
    return runs.sub(template.placeholder * (count if places == 1 else 1), text)


def _with_images(front: str, count: int, shown: str, template: Template) -> str:
    """A rendered prompt with the template's text for an image in place of every `<image>`, one for each picture."""
    if numbered := next((found[0] for found in PLACEHOLDER.finditer(front) if found[1]), ""):
        raise Refusal(422, f"{shown} holds {numbered!r}; send <image>, and the images in the order of their places")
    if template.image and "<image>" not in template.image:
        front = front.replace("<image>", template.image)
    places = front.count(template.placeholder or "<image>")
    if places != count:
        remedy = "send messages to /score" if count > places else "send an image for each, or remove it from the text"
        raise Refusal(422, f"{shown} has {places} image placeholders for {count} images; {remedy}")
    return front

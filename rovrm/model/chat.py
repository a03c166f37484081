r"""Chat templates: how a conversation becomes text, the same for policies and reward models.

    chat = ChatTemplate(processor)           # of LLaVA-1.5, say
    chat.conversations(example)              # ["USER: <image>\nWhat is it? ASSISTANT: A cup. </s>", ...]
    chat.prompt(example)                     # "USER: <image>\nWhat is it? ASSISTANT:"
    encode(processor, texts, images)         # the padded batch that a model takes

A reward model reads whole conversations, a policy the conversation up to where its answer begins.

Templates differ in what they print. Many loop over content blocks and print nothing for a string; others print a list
of blocks as Python would; some read the first block alone. So each template is tried once with marked texts, and each
role gets the form of content that the template prints. **Every part of a conversation must stand in the text exactly
once**: that is checked for every conversation, and one that a template cuts or doubles is refused with a UserError.

The reward is read at a conversation's last token, which must mean something. Where a template writes no token behind
the last answer (LLaVA-1.5 and v1.6-Vicuna end it with a blank), `prepare_template` adds the end-of-sequence token to
the template itself, which is saved with the model: whoever renders it reads the reward at the same token.
"""

import re
from collections.abc import Sequence
from typing import Any

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.messages import text_of, without_breaks
from rovrm.model.marks import blocks_of, has_text, kind_of, mark, marked, message_of, set_apart, squeezed

BLOCKS, STRING = "blocks", "string"  # the two forms of a message's content
ROLES = ("system", "user", "assistant")
END_OF_SEQUENCE = "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
DATE = "26 Jul 2024"  # what Llama's templates write where they know no date
FIXED_DATE = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro %}}"
PRINTED, MARKED_UP = 100_000, 10  # characters that a template may print of its own, and for each one given to it
HALF = re.compile(r"[\ud800-\udfff]")  # half of a character: what is left of an emoji that was cut
# What stands for an image in the texts of some family, or of a data set.
IMAGE_MARK = re.compile(
    r"<\|?(?:start_of_|begin_of_|end_of_)?image(?:[ _]?\d+|_pad|_start|_end|_soft_token|_placeholder|_start_token)?\|?>"
    r"|<\|vision_(?:start|end|pad)\|>|<\|?IMG(?:_CONTEXT)?\|?>|\[IMG(?:_BREAK|_END)?\]|<fake_token_around_image>"
    r"|<global-img>|<row_\d+_col_\d+>|<im_(?:patch|start|end)>|<ImageHere>|<\|(?:begin|end)_of_image\|>"
)
TEMPLATE_REMEDY = "give another template with chat_template=FILE"


class ChatTemplate:
    """The chat template of a processor, or of a text model's tokenizer.

    Args:
        processor: a processor, or the tokenizer of a text model; it keeps its own template.

    Raises:
        UserError: where it has no chat template.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.takes_images = hasattr(processor, "tokenizer")
        if getattr(processor, "chat_template", None) is None:
            name = getattr(getattr(processor, "tokenizer", processor), "name_or_path", "")
            remedy = "train with chat_template=FILE, or put chat_template.jinja beside its other files"
            raise UserError(f"the processor of {name!r} has no chat template; {remedy}")
        # What was found out about the template, by trying it.
        self._forms: dict[str, str] = {}  # role -> the form of its content
        self._pieces: dict[Any, list[str] | UserError] = {}  # structure of a conversation -> the text around its parts
        self._placeholder: str | None = None
        self._breaks = False  # whether the template itself breaks the line behind an image; found with the above
        self._tokens: list[str] | None = None

    def conversations(self, example: Example) -> list[str]:
        """The full conversations of an example, one per response, as a reward model reads them.

        Raises:
            UserError: where the template refuses, cuts or doubles one, and for a response with a token that would end
                its turn or stands for an image.
        """
        for response in example.responses:
            self._check_response(response)
        answers = [message_of("assistant", self._whole_thought(text)) for text in example.responses]
        if example.rendered is not None:
            return [example.rendered + self._behind_question(answer) for answer in answers]
        prompt = self._placed(example)
        return [self._text([*prompt, answer], answering=False) for answer in answers]

    def prompt(self, example: Example) -> str:
        """The conversation up to where the answer begins, as a policy reads it. A policy that could think first is
        asked to answer."""
        return self._text(self._placed(example), answering=True)

    def openings(self) -> list[str]:
        """What stands between a question and its answer, white space around it apart: in a conversation, and in the
        prompts that policies get, with and without thoughts. Never empty texts; the longest first."""
        question = [message_of("user", mark(0))]
        texts = [self._sample().partition(mark(1))[0]]
        texts += [self._apply(question, answering=True, thinking=thinking) for thinking in (None, False, True)]
        behind = [text.partition(mark(0))[2] for text in texts]
        behind += [text.partition("<think>")[0] for text in behind]  # the answer brings a thought of its own
        return sorted({text.strip() for text in behind} - {""}, key=len, reverse=True)

    def head(self) -> str:
        """What the template writes in front of the first question, such as "USER: "."""
        return self._sample().partition(mark(0))[0]

    def _behind_question(self, answer: dict[str, Any]) -> str:
        """What a conversation holds from an opening on, such as "ASSISTANT: A cup. </s>"."""
        whole = self._text([message_of("user", mark(0)), answer], answering=False)
        return whole.partition(mark(0))[2].lstrip()

    def _whole_thought(self, response: str) -> str:
        """The response with the `<think>` that the template wrote into its prompt, where it ends that thought."""
        if "</think>" not in response or "<think>" in response:
            return response
        opened = any(text.endswith("<think>") for text in self.openings())
        return f"<think>\n{response.lstrip()}" if opened else response

    def ending(self) -> str:
        """What the template writes behind the last answer, such as " </s>"."""
        return self._sample().partition(mark(1))[2]

    def has_bos(self) -> bool:
        """`has_bos` of the template's conversations, whatever is said in them."""
        return has_bos(getattr(self.processor, "tokenizer", self.processor), self._sample())

    # ---- the parts of a conversation ---------------------------------------------------------------------------------

    def _placed(self, example: Example) -> list[dict[str, Any]]:
        """The prompt with content as blocks, and one image block per image.

        Images without a place lead the first user's text. In other turns than the user's the texts are one block,
        because some templates read no second one.
        """
        count = len(example.images)
        if count and not self.takes_images:
            raise UserError(f"this is a text model, and the row has {count} images; give a vision model")
        messages = [message | {"content": blocks_of(message)} for message in example.prompt]
        for text in [block["text"] for message in messages for block in message["content"] if has_text(block)]:
            if count and (found := IMAGE_MARK.search(text)):
                raise UserError(f"the prompt holds {found[0]!r}, and which image is meant is not known; write <image>")
            if token := next((token for token in self._turn_tokens() if token in text), None):
                raise UserError(
                    f"the prompt holds {token!r}, by which this model's chat template marks turns; give its turns as "
                    "messages, or remove it from the text"
                )
        placed = sum(block["type"] == "image" for message in messages for block in message["content"])
        if placed > count:
            raise UserError(
                f"the prompt has {placed} image placeholders for {count} images; add images or drop placeholders"
            )
        if placed < count:
            user = next((message for message in messages if message["role"] == "user"), None)
            if user is None:
                raise UserError("the prompt has no user message to put the image in; add one")
            user["content"] = [{"type": "image"}] * (count - placed) + user["content"]
        return without_breaks(messages) if count and self.image_text() and self._breaks else messages

    def _check_response(self, response: str) -> None:
        """Raises UserError for a response that would end its own turn, since what follows could be anything to the
        model, and for one with what stands for an image: images are in prompts alone."""
        if found := IMAGE_MARK.search(response):
            raise UserError(
                f"the response {response[:60]!r} holds the image token {found[0]!r}, and an answer holds text only; "
                "remove it from the text"
            )
        token = next((token for token in self._turn_tokens() if token in response), None)
        if token is not None:
            raise UserError(
                f"the response {response[:60]!r} holds {token!r}, by which this model's chat template marks turns; "
                "remove it from the text"
            )

    def _turn_tokens(self) -> list[str]:
        """The special tokens that the template writes into a conversation, and the end of sequence."""
        if self._tokens is None:
            tokenizer = getattr(self.processor, "tokenizer", self.processor)
            written = re.sub("<think>.*?</think>", "", self._sample(), flags=re.DOTALL)  # thoughts are texts too
            special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
            self._tokens = [token for token in special if token in written or token == tokenizer.eos_token]
        return self._tokens

    # ---- rendering ---------------------------------------------------------------------------------------------------

    def _text(self, messages: list[dict[str, Any]], answering: bool) -> str:
        """The rendered conversation, after a look whether all of it stands there once.

        Conversations of one structure (the same roles and kinds of blocks) have the same text around their parts, which
        is found with marks in place of the parts (`_structure`). This one must be that text with its own parts in it.
        """
        parts = [(m["role"], block["text"]) for m in messages for block in m["content"] if has_text(block)]
        pieces = self._structure(messages, answering)
        text = self._apply(set_apart(messages, pieces), answering)
        expected = pieces[0]
        for (_, part), piece in zip(parts, pieces[1:], strict=True):
            expected += part + piece
        if squeezed(text) != squeezed(expected):
            raise UserError(_first_cut(text, parts))
        return text

    def _structure(self, messages: list[dict[str, Any]], answering: bool) -> list[str]:
        """The text around the parts of conversations of this structure: one piece more than there are parts."""
        key = (answering, tuple((m["role"], tuple(kind_of(block) for block in m["content"])) for m in messages))
        if key not in self._pieces:
            try:
                self._pieces[key] = self._tried(messages, answering)
            except UserError as error:
                self._pieces[key] = error
        pieces = self._pieces[key]
        if isinstance(pieces, UserError):
            raise UserError(str(pieces))
        return pieces

    def _tried(self, messages: list[dict[str, Any]], answering: bool) -> list[str]:
        """`_structure`, found out. Raises UserError where the template loses, repeats or moves a part or an image."""
        tried, roles = marked(messages)
        text = self._apply(tried, answering)
        pieces = [text]
        for i, role in enumerate(roles):
            if problem := _problem(text, mark(i)):
                raise UserError(f"the chat template {problem} the {role}'s text; {_remedy(role)}")
            if mark(i) not in pieces[-1]:  # it stands before the mark of an earlier part
                raise UserError(f"the chat template moves the {role}'s text out of its place; {TEMPLATE_REMEDY}")
            before, _, behind = pieces.pop().partition(mark(i))
            pieces += [before, behind]
        images = sum(block["type"] == "image" for m in messages for block in m["content"])
        written = text.count(self.image_text()) if images else 0
        if written != images:
            raise UserError(f"the chat template writes {written} placeholders for {images} images; {TEMPLATE_REMEDY}")
        return pieces

    def image_text(self) -> str:
        """What the template writes for an image: what a question with two has more than the same with one."""
        if self._placeholder is None:
            text = message_of("user", mark(0))["content"]
            one = self._apply([{"role": "user", "content": [{"type": "image"}] + text}], answering=True)
            two = self._apply([{"role": "user", "content": [{"type": "image"}] * 2 + text}], answering=True)
            self._breaks = one.partition(mark(0))[0][-1:].isspace()
            same = 0  # characters with which both begin: up to behind the first image
            while same < min(len(one), len(two)) and one[same] == two[same]:
                same += 1
            self._placeholder = two[same:].partition(mark(0))[0].strip() or "an image"
        return self._placeholder

    def _sample(self) -> str:
        """A conversation of one question and one answer, with marks for their texts."""
        return self._apply([message_of("user", mark(0)), message_of("assistant", mark(1))], answering=False)

    def _apply(self, messages: list[dict[str, Any]], answering: bool, thinking: bool | None = False) -> str:
        """Messages of blocks as the template renders them, each in the form that it prints for the role. thinking:
        whether a policy is asked for thoughts; None for what the template does by itself."""
        if not self._forms:
            self._forms = _forms_of(self.processor, [BLOCKS, STRING] if self.takes_images else [STRING, BLOCKS])
        formed = []
        for message in messages:
            pictured = any(block["type"] == "image" for block in message["content"])
            if not pictured and self._forms[message["role"]] == STRING:
                message = message | {"content": text_of(message["content"])}
            formed.append(message)
        options = {"add_generation_prompt": True} if answering else {}
        if answering and thinking is not None and "enable_thinking" in self.processor.chat_template:
            options["enable_thinking"] = thinking
        return _apply(self.processor, formed, options)


# ---- templates and batches -------------------------------------------------------------------------------------------


def prepare_template(processor: Any) -> None:
    """Gives a language model's processor the template that a reward model is trained and saved with: of a fixed date,
    and with an end-of-sequence token where nothing but white space follows the last answer."""
    if not isinstance(processor.chat_template, str):
        return
    fix_date(processor)
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer.eos_token and not ChatTemplate(processor).ending().strip():
        _set_template(processor, processor.chat_template.removesuffix("\n") + END_OF_SEQUENCE)


def fix_date(processor: Any) -> None:
    """A template that asks for today's date writes the same on every day, or rewards would change overnight."""
    if "strftime_now" in processor.chat_template and not processor.chat_template.startswith(FIXED_DATE):
        _set_template(processor, FIXED_DATE + processor.chat_template)


def _set_template(processor: Any, template: str) -> None:
    processor.chat_template = template
    tokenizer = getattr(processor, "tokenizer", None)
    if getattr(tokenizer, "chat_template", None) is not None:  # a second copy, which saving would write as well
        tokenizer.chat_template = template  # type: ignore[union-attr]


def encode(processor: Any, texts: Sequence[str], images: Sequence[Sequence[Any]], **options: Any) -> dict[str, Any]:
    """Rendered texts and their images as the processor's padded batch.

    Args:
        texts: from `ChatTemplate`; all begin alike.
        images: of each text, PIL images in the order of their placeholders. Where no text has any, the batch is the
            tokenizer's, because some processors refuse an empty list.
        options: of the processor, such as `padding_side="left"`.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    special = not has_bos(tokenizer, texts[0])
    options = {"return_tensors": "pt", "padding": True, "add_special_tokens": special} | options
    if any(images):
        batch = dict(processor(text=list(texts), images=list(images), **options))
        batch.pop("labels", None)  # PaliGemma's processor adds some
        return batch
    batch = dict(tokenizer(list(texts), **options))
    if "token_type_ids" in getattr(processor, "model_input_names", []):
        batch["token_type_ids"] = batch["input_ids"].new_zeros(batch["input_ids"].shape)
    return batch


def has_bos(tokenizer: Any, text: str) -> bool:
    """Whether no beginning-of-sequence token may be added: the template has written it, or the tokenizer has none."""
    bos = tokenizer.bos_token
    return bos is None or text.startswith(bos)


# ---- what a template prints ------------------------------------------------------------------------------------------


def _forms_of(processor: Any, preferred: list[str]) -> dict[str, str]:
    """By role the form of content that the template prints once; the first of `preferred` where none does."""
    forms = {"user": preferred[0], "assistant": preferred[0]}
    for user, assistant in [(user, assistant) for user in preferred for assistant in preferred]:
        if _prints(processor, {"user": user, "assistant": assistant}):
            forms = {"user": user, "assistant": assistant}
            break
    system = next((form for form in preferred if _prints(processor, {"system": form} | forms)), preferred[0])
    return forms | {"system": system}


def _prints(processor: Any, forms: dict[str, str]) -> bool:
    """Whether a turn of each role, in these forms, stands in the text once."""
    messages = []
    for i, (role, form) in enumerate(forms.items()):
        messages.append({"role": role, "content": mark(i)} if form == STRING else message_of(role, mark(i)))
    try:
        text = _apply(processor, messages, {})
    except UserError:
        return False
    return not any(_problem(text, mark(i)) for i in range(len(messages)))


def _problem(text: str, mark: str) -> str:
    """What a template does wrong with a marked text: empty for nothing."""
    if text.count(mark) != 1:
        return "repeats" if mark in text else "drops"
    as_python = re.search(rf"""['"]text['"]:\s*['"]{mark}""", text)
    return "prints as a Python list" if as_python else ""


def _first_cut(text: str, parts: list[tuple[str, str]]) -> str:
    """The message about a conversation that the template does not write as it writes others."""
    rest = squeezed(text)
    for role, part in parts:
        tight = squeezed(part)
        if tight not in rest:
            return f"the chat template does not write all of the {role}'s text {part[:80]!r}; {_remedy(role)}"
        rest = rest[rest.index(tight) + len(tight) :]
    return f"the chat template treats a text of this conversation as its own mark-up; {TEMPLATE_REMEDY}"


def _remedy(role: str) -> str:
    where = "put it into the user's turn, or " if role == "system" else "change it, or "
    return where + TEMPLATE_REMEDY


def _apply(processor: Any, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """The processor's own rendering. Raises UserError where the template refuses, or prints without end."""
    try:
        text = processor.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # jinja2 and the templates' own raise_exception have no common narrower type
        raise UserError(
            f"the chat template refuses this conversation ({type(error).__name__}: {error}); "
            "mend the roles of the prompt, or give another template with chat_template=FILE"
        ) from error
    length = len(str(messages))
    if len(text) > PRINTED + MARKED_UP * length:  # tokenising megabytes takes minutes, and a batch holds many of them
        raise UserError(
            f"the chat template prints {len(text)} characters for a conversation of {length}; {TEMPLATE_REMEDY}"
        )
    if half := HALF.search(text):
        raise UserError(f"the conversation holds {half[0]!r}, half a character: no tokenizer takes it; mend the text")
    return text

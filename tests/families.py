"""Tiny, randomly initialised checkpoints of the supported families, in the ordinary Hugging Face folder format.

    folder = make_family("qwen2_5_vl", tmp_path / "qwen")      # config, safetensors, processor, chat template
    AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)

Architectures, processors, special tokens and chat-template shapes are the real ones; sizes, weights and the vocabulary
(a small byte-level BPE) are not. Weights are drawn wide, and gates and norms that a family initialises to a constant
are made random too, so that another image or another word visibly moves every later hidden state.
"""

import functools
from pathlib import Path

HIDDEN = 32
STD = 0.2

CORPUS = [
    "The picture shows a small red cup on a wooden table next to an open book.",
    "What is on the table? Describe the image in one sentence, please.",
    "A brown dog is running on the green grass while two children are watching it.",
    "How many people are there in the photo? There are three people in the photo.",
    "You are a helpful assistant. Answer the question and explain your reasoning step by step.",
    "The answer is wrong because the bus in the image is blue, not yellow.",
    "I think that the first response is better than the second response.",
    "user assistant system USER ASSISTANT User Assistant model\n\nIt is not clear from the image.\n",
    'Numbers such as 0, 1, 2, 12, 345 and 2024 appear here; so do (brackets), "quotes" and new lines.\n\n',
]


# --------------------------------------------------------------------------------------------------------------------
# Processors without torchvision


def has_torchvision() -> bool:
    """Whether torchvision can really be imported (an installed wheel may still refuse to load beside a CPU torch)."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def allow_missing_video_processor() -> None:
    """Let processors that own a *video* processor be built, saved and loaded where torchvision is absent.

    Qwen-VL, InternVL, LLaVA-OneVision and SmolVLM processors need torchvision (SmolVLM also num2words) only for video,
    but ask for it in their constructor. Three things are added, nothing else is touched: the real `VideoProcessorMixin`
    under the name the class check looks up, a stand-in of that class which refuses every video, and the stand-in as
    what `AutoProcessor` loads for the modality "video_processor". Does nothing where torchvision works.
    """
    if has_torchvision():
        return
    from transformers import processing_utils
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.video_processing_utils import VideoProcessorMixin

    class AbsentVideoProcessor(VideoProcessorMixin):
        num_frames = fps = None
        merge_size = 2

        def __init__(self, video_processor_type=None, **kwargs):
            super().__init__(**kwargs)
            self.video_processor_type = video_processor_type  # the real class, so that a saved folder names it

        def __call__(self, videos, **kwargs):
            raise ImportError("video needs torchvision, which this environment lacks")

        def to_dict(self):
            return {"video_processor_type": self.video_processor_type}

    processing_utils.transformers_module.VideoProcessorMixin = VideoProcessorMixin
    processing_utils.AbsentVideoProcessor = AbsentVideoProcessor
    names = processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES
    names["video_processor"] = (processing_utils.__name__, AbsentVideoProcessor.__name__)
    if processing_smolvlm.num2words is None:  # spells the number of frames of a video
        processing_smolvlm.num2words = str


def _video_processor(name, **settings):
    """The real video processor `name` where torchvision works, its stand-in elsewhere."""
    import transformers
    from transformers import processing_utils

    if has_torchvision():
        return getattr(transformers, name)(**settings)
    allow_missing_video_processor()
    return processing_utils.AbsentVideoProcessor(video_processor_type=name)


def _image_processor(name, **settings):
    import transformers

    return getattr(transformers, name if has_torchvision() else f"{name}Pil")(**settings)


# --------------------------------------------------------------------------------------------------------------------
# Tokenizers


# Qwen's own: AutoTokenizer rebuilds a "qwen2" folder with it whatever tokenizer.json says, so all families share it.
QWEN_SPLIT = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"""
    r"""|\s+(?!\S)|\s+"""
)


@functools.cache
def _bpe() -> str:
    """A byte-level BPE (all 256 bytes and up to 200 merges) trained on CORPUS, as JSON."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=456, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def _tokenizer(template, specials, eos, pad, bos=None, add_bos=False, side="right", **named):
    """A fast tokenizer with `specials` (added in this order after the BPE entries) and `named` ones as attributes."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_bpe())
    backend.add_special_tokens(list(specials))
    options = {"add_bos_token": True} if add_bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        padding_side=side,
        extra_special_tokens=named or [t for t in specials if t not in (bos, eos, pad)],
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        **options,
    )


def _ids(tokenizer):
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


# --------------------------------------------------------------------------------------------------------------------
# Chat templates: the families' own shapes in compact form. Content is a string or a list of text and image blocks.

MACROS = """
{%- macro text(m) -%}
{%- if m['content'] is string -%}{{ m['content'] }}
{%- else -%}{%- for b in m['content'] if b['type'] == 'text' -%}{{ b['text'] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro images(m, mark) -%}
{%- if m['content'] is not string -%}
{%- for b in m['content'] if b['type'] == 'image' -%}{{ mark }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro body(m, mark) -%}
{%- if m['content'] is string -%}{{ m['content'] }}
{%- else -%}
{%- for b in m['content'] -%}
{%- if b['type'] == 'image' -%}{{ mark }}{%- elif b['type'] == 'text' -%}{{ b['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""


def _generation(prompt):
    return "{%- if add_generation_prompt -%}{{ " + prompt + " }}{%- endif -%}"


VICUNA = (
    MACROS
    + r"""
{%- for m in messages -%}
{%- if m['role'] == 'system' -%}{{ text(m) + ' ' }}
{%- elif m['role'] == 'user' -%}{{ 'USER: ' + images(m, '<image>\n') + text(m) + ' ' }}
{%- else -%}{{ 'ASSISTANT: ' + text(m) + eos_token }}
{%- endif -%}
{%- endfor -%}"""
    + _generation("'ASSISTANT:'")
)

MISTRAL = (
    MACROS
    + r"""
{%- for m in messages -%}
{%- if m['role'] == 'system' -%}{{ '<<SYS>>\n' + text(m) + '\n<</SYS>>\n\n' }}
{%- elif m['role'] == 'user' -%}{{ '[INST] ' + images(m, '<image>\n') + text(m) + ' [/INST]' }}
{%- else -%}{{ ' ' + text(m) + eos_token }}
{%- endif -%}
{%- endfor -%}"""
)


def _chatml(image="", default_system="", images_first=False, end="<|im_end|>\n", after_role="\n"):
    content = f"images(m, '{image}') + '\\n' + text(m)" if images_first else f"body(m, '{image}')"
    system = ""
    if default_system:
        system = (
            "{%- if messages[0]['role'] != 'system' -%}"
            f"{{{{ '<|im_start|>system\\n{default_system}<|im_end|>\\n' }}}}"
            "{%- endif -%}"
        )
    end, after_role = end.replace("\n", "\\n"), after_role.replace("\n", "\\n")
    return (
        MACROS
        + system
        + "{%- for m in messages -%}"
        + f"{{{{ '<|im_start|>' + m['role'] + '{after_role}' + {content} + '{end}' }}}}"
        + "{%- endfor -%}"
        + _generation(r"'<|im_start|>assistant\n'")
    )


# Qwen3 puts an empty thought before the last answer, and only there.
QWEN3 = (
    MACROS
    + r"""
{%- for m in messages -%}
{%- set thought = '<think>\n\n</think>\n\n' if m['role'] == 'assistant' and loop.last else '' -%}
{{ '<|im_start|>' + m['role'] + '\n' + thought + text(m) + '<|im_end|>\n' }}
{%- endfor -%}"""
    + _generation(r"'<|im_start|>assistant\n'")
)

LLAMA3 = (
    MACROS
    + r"""
{{- bos_token }}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + body(m, '<|image|>') | trim + '<|eot_id|>' }}
{%- endfor -%}"""
    + _generation(r"'<|start_header_id|>assistant<|end_header_id|>\n\n'")
)

GEMMA = (
    MACROS
    + r"""
{{- bos_token }}
{%- set ns = namespace(system='') -%}
{%- for m in messages -%}
{%- if m['role'] == 'system' -%}{%- set ns.system = text(m) + '\n\n' -%}
{%- else -%}
{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
{{ '<start_of_turn>' + role + '\n' + ns.system + body(m, '<start_of_image>') | trim + '<end_of_turn>\n' }}
{%- set ns.system = '' -%}
{%- endif -%}
{%- endfor -%}"""
    + _generation(r"'<start_of_turn>model\n'")
)

# The blank after the colon is dropped where an image comes first, as in the original.
IDEFICS = (
    MACROS
    + r"""
{{- bos_token }}
{%- for m in messages -%}
{%- set first = m['content'] is not string and m['content'] and m['content'][0]['type'] == 'image' -%}
{{ m['role'] | capitalize + (':' if first else ': ') + body(m, '<image>') + '<end_of_utterance>\n' }}
{%- endfor -%}"""
    + _generation("'Assistant:'")
)

# PaliGemma has no chat template; its pre-training format is image tokens, bos, prompt, newline, answer, eos. The
# processor itself writes the bos behind the last image.
PALIGEMMA = (
    MACROS
    + r"""
{%- for m in messages -%}{{ images(m, '<image>') }}{%- endfor -%}
{%- for m in messages -%}
{%- if m['role'] == 'assistant' -%}{{ text(m) + eos_token }}{%- else -%}{{ text(m) + '\n' }}{%- endif -%}
{%- endfor -%}"""
)


# --------------------------------------------------------------------------------------------------------------------
# Model parts


def _text(tokenizer, **more):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "initializer_range": STD,
        "tie_word_embeddings": False,
        **_ids(tokenizer),
        **more,
    }


def _vision(**more):
    """A CLIP or SigLIP tower of two layers: 4 x 4 patches of a 32-pixel image."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 32,
        **more,
    }


def _clip(**more):
    return {"model_type": "clip_vision_model", "initializer_range": STD, **_vision(**more)}


def _siglip(**more):
    return {"model_type": "siglip_vision_model", "vision_use_head": False, **_vision(**more)}


def _llama2_tokenizer(template):
    return _tokenizer(
        template,
        ["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        add_bos=True,
        side="left",
        image_token="<image>",
    )


# --------------------------------------------------------------------------------------------------------------------
# Builders: each returns (language-model class, config, processor)


def _llava(template=VICUNA, **text):
    import transformers as tf

    tokenizer = _llama2_tokenizer(template)
    image_processor = _image_processor(
        "CLIPImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = tf.LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    config = tf.LlavaConfig(
        vision_config=_clip(),
        text_config=_text(tokenizer, **{"model_type": "llama", **text}),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
        vision_feature_layer=-2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tf.LlavaForConditionalGeneration, config, processor


def _llava_mistral():
    return _llava(MISTRAL, model_type="mistral", sliding_window=None)


def _llava_mistral_sliding():
    return _llava(MISTRAL, model_type="mistral", sliding_window=16)


def _llava_next():
    import transformers as tf

    tokenizer = _llama2_tokenizer(VICUNA)
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    image_processor = _image_processor(
        "LlavaNextImageProcessor",
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=pinpoints,
    )
    processor = tf.LlavaNextProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )
    config = tf.LlavaNextConfig(
        vision_config=_clip(image_size=16),
        text_config=_text(tokenizer, model_type="llama"),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=pinpoints,
        image_seq_length=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tf.LlavaNextForConditionalGeneration, config, processor


def _qwen_tokenizer(template, side, specials=(), **named):
    vision = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    return _tokenizer(
        template,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(specials or vision)],
        eos="<|im_end|>",
        pad="<|endoftext|>",
        side=side,
        **named,
    )


def _llava_onevision():
    import transformers as tf

    template = _chatml("<image>", images_first=True, end="<|im_end|>", after_role=" ")
    specials = ["<image>", "<video>"]
    tokenizer = _qwen_tokenizer(template, "right", specials, image_token="<image>", video_token="<video>")
    pinpoints = [[16, 16], [16, 32], [32, 16], [32, 32]]
    image_processor = _image_processor(
        "LlavaOnevisionImageProcessor", size={"height": 16, "width": 16}, image_grid_pinpoints=pinpoints
    )
    processor = tf.LlavaOnevisionProcessor(
        image_processor,
        tokenizer,
        _video_processor("LlavaOnevisionVideoProcessor", size={"height": 16, "width": 16}),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template,
        vision_aspect_ratio="anyres_max_9",
    )
    config = tf.LlavaOnevisionConfig(
        vision_config=_siglip(image_size=16),
        text_config=_text(tokenizer, model_type="qwen2"),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tf.LlavaOnevisionForConditionalGeneration, config, processor


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def _qwen_vl(prefix, template, side, vision, rope, pixels="Qwen2VLVideoProcessor", processor="", **text):
    """Qwen2-VL and later: 16-pixel merged patches, 4 to 16 of them for one image."""
    import transformers as tf

    tokenizer = _qwen_tokenizer(template, side)
    size = {"shortest_edge": 4 * 16 * 16, "longest_edge": 16 * 16 * 16}
    image_processor = _image_processor("Qwen2VLImageProcessor", patch_size=8, merge_size=2, size=size)
    video_processor = _video_processor(pixels, patch_size=8, merge_size=2)
    make = getattr(tf, f"{processor or prefix}Processor")
    processor = make(image_processor, tokenizer, video_processor, chat_template=template)
    config = getattr(tf, f"{prefix}Config")(
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 8, "initializer_range": STD, **vision},
        text_config=_text(tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 1e4, **rope}, **text),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    return getattr(tf, f"{prefix}ForConditionalGeneration"), config, processor


ASSISTANT = "You are a helpful assistant."


def _qwen2_vl():
    vision = {"embed_dim": 32, "hidden_size": HIDDEN, "mlp_ratio": 2}
    template = _chatml(QWEN_IMAGE, default_system=ASSISTANT)
    return _qwen_vl("Qwen2VL", template, "left", vision, {"mrope_section": [2, 3, 3]})


def _qwen2_5_vl():
    vision = {
        "hidden_size": 32,
        "out_hidden_size": HIDDEN,
        "intermediate_size": 48,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    template = _chatml(QWEN_IMAGE, default_system=ASSISTANT)
    return _qwen_vl("Qwen2_5_VL", template, "right", vision, {"mrope_section": [2, 3, 3]})


def _qwen3_vl():
    vision = {
        "hidden_size": 32,
        "out_hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    rope = {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return _qwen_vl("Qwen3VL", _chatml(QWEN_IMAGE), "right", vision, rope, "Qwen3VLVideoProcessor", head_dim=16)


def _idefics(prefix, tokenizer, template, **processor_parts):
    """Idefics3 and SmolVLM: 16-pixel tiles of 4 tokens, image splitting on, at most 2 x 2 tiles and the whole."""
    import transformers as tf

    image_processor = _image_processor(
        f"{prefix}ImageProcessor",
        size={"longest_edge": 32},
        max_image_size={"longest_edge": 16},
        do_image_splitting=True,
    )
    processor = getattr(tf, f"{prefix}Processor")(
        image_processor=image_processor, tokenizer=tokenizer, image_seq_len=4, chat_template=template, **processor_parts
    )
    vision = _vision(image_size=16, patch_size=4, initializer_range=STD)
    vision.pop("projection_dim")
    config = getattr(tf, f"{prefix}Config")(
        vision_config=vision,
        text_config=_text(tokenizer, model_type="llama"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return getattr(tf, f"{prefix}ForConditionalGeneration"), config, processor


TILES = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"] + [
    f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)
]


def _idefics3():
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *TILES]
    tokenizer = _tokenizer(
        IDEFICS, specials, bos="<|begin_of_text|>", eos="<end_of_utterance>", pad="<|end_of_text|>", add_bos=True
    )
    return _idefics("Idefics3", tokenizer, IDEFICS)


def _smolvlm():
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *TILES]
    tokenizer = _tokenizer(
        IDEFICS,
        specials,
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        pad="<|im_end|>",
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        end_of_utterance_token="<end_of_utterance>",
        global_image_token="<global-img>",
    )
    return _idefics("SmolVLM", tokenizer, IDEFICS, video_processor=_video_processor("SmolVLMVideoProcessor"))


def _internvl():
    import transformers as tf

    template = _chatml("<IMG_CONTEXT>\\n")
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = _qwen_tokenizer(template, "left", list(named.values()), **named)
    image_processor = _image_processor(
        "GotOcr2ImageProcessor", size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=4
    )
    video_processor = _video_processor("InternVLVideoProcessor", size={"height": 16, "width": 16})
    processor = tf.InternVLProcessor(
        image_processor, tokenizer, video_processor, image_seq_length=4, chat_template=template
    )
    vision = _vision(image_size=16, patch_size=4, initializer_range=STD)
    vision.pop("projection_dim")
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config=_text(tokenizer, model_type="qwen2"),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return tf.InternVLForConditionalGeneration, config, processor


def _gemma3():
    import transformers as tf

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(
        GEMMA, [*specials, *named.values()], bos="<bos>", eos="<eos>", pad="<pad>", add_bos=True, side="left", **named
    )
    image_processor = _image_processor("Gemma3ImageProcessor", size={"height": 32, "width": 32}, image_seq_length=4)
    processor = tf.Gemma3Processor(image_processor, tokenizer, chat_template=GEMMA, image_seq_length=4)
    config = tf.Gemma3Config(
        vision_config=_siglip(),
        text_config=_text(
            tokenizer,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            tie_word_embeddings=True,
        ),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        initializer_range=STD,
    )
    return tf.Gemma3ForConditionalGeneration, config, processor


def _paligemma():
    import transformers as tf

    tokenizer = _tokenizer(
        PALIGEMMA,
        ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"],
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        add_bos=True,  # the processor switches it off and writes the bos itself
        image_token="<image>",
    )
    image_processor = _image_processor("SiglipImageProcessor", size={"height": 32, "width": 32}, image_seq_length=16)
    image_processor.image_seq_length = 16
    processor = tf.PaliGemmaProcessor(image_processor, tokenizer, chat_template=PALIGEMMA)
    config = tf.PaliGemmaConfig(
        vision_config=_siglip(),
        text_config=_text(tokenizer, model_type="gemma", head_dim=16, tie_word_embeddings=True),
        image_token_index=tokenizer.image_token_id,
        vocab_size=len(tokenizer),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        **_ids(tokenizer),
    )
    return tf.PaliGemmaForConditionalGeneration, config, processor


def _llama3_tokenizer(*more, pad=None):
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return _tokenizer(
        LLAMA3, [*specials, "<|python_tag|>", *more], bos="<|begin_of_text|>", eos="<|eot_id|>", pad=pad, add_bos=True
    )


def _mllama():
    import transformers as tf

    tokenizer = _llama3_tokenizer("<|finetune_right_pad_id|>", "<|image|>", pad="<|finetune_right_pad_id|>")
    image_processor = _image_processor("MllamaImageProcessor", size={"height": 16, "width": 16}, max_image_tiles=4)
    processor = tf.MllamaProcessor(image_processor, tokenizer, chat_template=LLAMA3)
    image_token_id = tokenizer.convert_tokens_to_ids("<|image|>")
    assert image_token_id == len(tokenizer) - 1  # as in the original, where the image token lies past the output layer
    config = tf.MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
            "initializer_range": STD,
        },
        text_config=_text(tokenizer, vocab_size=len(tokenizer) - 1, cross_attention_layers=[1]),
        image_token_index=image_token_id,
    )
    return tf.MllamaForConditionalGeneration, config, processor


def _llama():
    import transformers as tf

    tokenizer = _llama3_tokenizer()  # Llama 3 has no padding token of its own
    return tf.LlamaForCausalLM, tf.LlamaConfig(**_text(tokenizer)), tokenizer


def _qwen2():
    import transformers as tf

    tokenizer = _qwen_tokenizer(_chatml(default_system=ASSISTANT), "right")
    return tf.Qwen2ForCausalLM, tf.Qwen2Config(**_text(tokenizer)), tokenizer


def _qwen3():
    import transformers as tf

    tokenizer = _qwen_tokenizer(QWEN3, "right", ["<think>", "</think>"])
    return tf.Qwen3ForCausalLM, tf.Qwen3Config(**_text(tokenizer, head_dim=16)), tokenizer


FAMILIES = {
    "llava": _llava,
    "llava_mistral": _llava_mistral,
    "llava_mistral_sliding": _llava_mistral_sliding,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "mllama": _mllama,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}
TEXT_FAMILIES = ("llama", "qwen2", "qwen3")
VISION_FAMILIES = tuple(name for name in FAMILIES if name not in TEXT_FAMILIES)


def _randomise(model, seed: int) -> None:
    """Draw every weight anew: matrices and tables with STD, vectors (norms, gates, biases) around their value."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * STD
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)


def make_family(name: str, folder, seed: int = 0, builders=FAMILIES) -> Path:
    """Write the tiny float32 language-model checkpoint and the processor of family `name` to `folder`; return it."""
    import torch

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model_class, config, processor = builders[name]()
        model = model_class(config).float().eval()
    _randomise(model, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder

"""Tiny checkpoints of further families, made as those of tests/families.py are.

    folder = make_family("qwen3_5", tmp_path / "qwen")

Those of NEEDS_TORCHVISION have an image processor that exists for torchvision alone.
"""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import families
from families import (
    ASSISTANT,
    GEMMA,
    HIDDEN,
    IDEFICS,
    MACROS,
    QWEN3,
    QWEN_IMAGE,
    STD,
    _chatml,
    _generation,
    _image_processor,
    _llama3_tokenizer,
    _llava,
    _qwen_tokenizer,
    _qwen_vl,
    _siglip,
    _text,
    _tokenizer,
    _video_processor,
    _vision,
    has_torchvision,
)

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
VIDEO_3 = "Qwen3VLVideoProcessor"


def _turns(user, assistant, system, start="", image=""):
    """A chat template of turns, each between the two texts of its role; image stands for an image."""
    texts = {"user": user, "assistant": assistant, "system": system}
    cases = "".join(
        f"{{%- if m['role'] == '{role}' -%}}{{{{ {before!r} + body(m, {image!r}) | trim + {after!r} }}}}{{%- endif -%}}"
        for role, (before, after) in texts.items()
    )
    return (
        MACROS
        + f"{{{{- {start!r} }}}}{{%- for m in messages -%}}{cases}{{%- endfor -%}}"
        + _generation(repr(assistant[0]))
    )


# --------------------------------------------------------------------------------------------------------------------
# Qwen 3.5 and the mixtures of experts

# A thought before the last answer, and only there.
QWEN3_5 = (
    MACROS
    + r"""
{%- for m in messages -%}
{%- set thought = '<think>\n\n</think>\n\n' if m['role'] == 'assistant' and loop.last else '' -%}
{{ '<|im_start|>' + m['role'] + '\n' + thought + body(m, '<|vision_start|><|image_pad|><|vision_end|>') | trim }}
{{- '<|im_end|>\n' }}
{%- endfor -%}"""
    + _generation(r"'<|im_start|>assistant\n<think>\n'")
)
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
}
PARTIAL = {"mrope_section": [1, 1, 0], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
QWEN_VISION = {"hidden_size": 32, "out_hidden_size": HIDDEN, "intermediate_size": 48}


def _qwen3_5(prefix="Qwen3_5", **text):
    vision = QWEN_VISION | {"num_position_embeddings": 64}
    return _qwen_vl(prefix, QWEN3_5, "right", vision, PARTIAL, VIDEO_3, "Qwen3VL", **(LINEAR | text))


def _qwen3_5_moe():
    return _qwen3_5("Qwen3_5Moe", shared_expert_intermediate_size=16, **EXPERTS)


def _qwen3_5_text(prefix="Qwen3_5", **more):
    import transformers as tf

    tokenizer = _qwen_tokenizer(QWEN3_5, "right")
    rope = {"rope_type": "default", "rope_theta": 1e4, **PARTIAL}
    config = getattr(tf, f"{prefix}TextConfig")(**_text(tokenizer, rope_parameters=rope, **LINEAR, **more))
    return getattr(tf, f"{prefix}ForCausalLM"), config, tokenizer


def _qwen3_5_moe_text():
    return _qwen3_5_text("Qwen3_5Moe", shared_expert_intermediate_size=16, **EXPERTS)


def _qwen3_next():
    import transformers as tf

    tokenizer = _qwen_tokenizer(_chatml(), "right")
    text = _text(tokenizer, shared_expert_intermediate_size=16, **LINEAR, **EXPERTS)
    return tf.Qwen3NextForCausalLM, tf.Qwen3NextConfig(**text), tokenizer


def _qwen3_vl_moe():
    vision = QWEN_VISION | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    rope = {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return _qwen_vl(
        "Qwen3VLMoe", _chatml(QWEN_IMAGE), "right", vision, rope, VIDEO_3, "Qwen3VL", head_dim=16, **EXPERTS
    )


def _qwen2_5_vl_sliding():
    vision = QWEN_VISION | {"window_size": 32, "fullatt_block_indexes": [1]}
    template = _chatml(QWEN_IMAGE, default_system=ASSISTANT)
    return _qwen_vl(
        "Qwen2_5_VL", template, "right", vision, {"mrope_section": [2, 3, 3]}, use_sliding_window=True, **SLIDING
    )


def _qwen3_moe():
    import transformers as tf

    tokenizer = _qwen_tokenizer(QWEN3, "right", ["<think>", "</think>"])
    return tf.Qwen3MoeForCausalLM, tf.Qwen3MoeConfig(**_text(tokenizer, head_dim=16, **EXPERTS)), tokenizer


# --------------------------------------------------------------------------------------------------------------------
# Gemma

GEMMA_4 = _turns(
    ("<|turn>user\n", "<turn|>\n"),
    ("<|turn>model\n", "<turn|>\n"),
    ("<|turn>system\n", "<turn|>\n"),
    "<bos>",
    "<|image|>",
)
GEMMA_4_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|video|>"]
# Only the layer that is full has keys and values of its own head size.
GEMMA_4_TEXT = {
    "head_dim": 4,
    "global_head_dim": 8,
    "sliding_window": 16,
    "tie_word_embeddings": True,
}
# E2B and E4B: every layer has an embedding of each token, and later layers take the keys and values of earlier ones.
GEMMA_4_E = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
}
# 26B: image tokens see both ways, keys are values, and experts.
GEMMA_4_MOE = {
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
    "use_bidirectional_attention": "vision",
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
}


AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [8, 4],
    "output_proj_dims": 32,
    "initializer_range": STD,
}


def _gemma4_tokenizer():
    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    specials = [*GEMMA_4_TOKENS, *named.values()]
    return _tokenizer(GEMMA_4, specials, bos="<bos>", eos="<eos>", pad="<pad>", add_bos=True, side="left", **named)


def _gemma4(text=GEMMA_4_E):
    import transformers as tf

    tokenizer = _gemma4_tokenizer()
    sizes = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}  # the fewest that it takes
    processor = tf.Gemma4Processor(
        tf.Gemma4AudioFeatureExtractor(),
        _image_processor("Gemma4ImageProcessor", **sizes),
        tokenizer,
        _video_processor("Gemma4VideoProcessor"),
        chat_template=GEMMA_4,
        image_seq_length=70,
    )
    vision = _vision(num_key_value_heads=2, head_dim=16, initializer_range=STD) | {"patch_size": 4}
    vision |= {"pooling_kernel_size": 2, "position_embedding_size": 128}
    for name in ("image_size", "projection_dim"):
        vision.pop(name)
    marks = ("image", "boi", "eoi", "audio", "boa")
    config = tf.Gemma4Config(
        vision_config=vision,
        text_config=_text(tokenizer, **(GEMMA_4_TEXT | text), vocab_size_per_layer_input=len(tokenizer)),
        audio_config=AUDIO,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        eoa_token_index=tokenizer.eoa_token_id,
        initializer_range=STD,
        **{f"{mark}_token_id": getattr(tokenizer, f"{mark}_token_id") for mark in marks},
    )
    return tf.Gemma4ForConditionalGeneration, config, processor


def _gemma4_moe():
    return _gemma4(GEMMA_4_MOE)


def _gemma4_text():
    import transformers as tf

    tokenizer = _gemma4_tokenizer()
    text = _text(tokenizer, **(GEMMA_4_TEXT | GEMMA_4_E), vocab_size_per_layer_input=len(tokenizer))
    return tf.Gemma4ForCausalLM, tf.Gemma4TextConfig(**text), tokenizer


def _gemma_tokenizer():
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    return _tokenizer(GEMMA, specials, bos="<bos>", eos="<eos>", pad="<pad>", add_bos=True, side="left")


def _gemma_text(prefix, config, **more):
    import transformers as tf

    tokenizer = _gemma_tokenizer()
    text = _text(tokenizer, head_dim=16, tie_word_embeddings=True, **more)
    return getattr(tf, f"{prefix}ForCausalLM"), getattr(tf, config)(**text), tokenizer


def _gemma():
    return _gemma_text("Gemma", "GemmaConfig")


def _gemma2():
    return _gemma_text("Gemma2", "Gemma2Config", query_pre_attn_scalar=16, **SLIDING)


def _gemma3_text():
    return _gemma_text("Gemma3", "Gemma3TextConfig", query_pre_attn_scalar=16, **SLIDING)


# --------------------------------------------------------------------------------------------------------------------
# Mistral

MISTRAL_3 = _turns(
    ("[INST]", "[/INST]"), ("", "</s>"), ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), start="<s>", image="[IMG]"
)
# Its queries grow with their position, from the length of its training on: 16 tokens here.
MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
MINISTRAL = {"head_dim": 16, "rope_parameters": MINISTRAL_ROPE}


def _mistral_tokenizer():
    turns = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    return _tokenizer(
        MISTRAL_3, ["<unk>", "<s>", "</s>", "<pad>", *turns], bos="<s>", eos="</s>", pad="<pad>", add_bos=True
    )


def _pixtral_processor_class():
    """PixtralProcessor: transformers asks for torchvision before it shows it, although its image processor has a half
    that does without. There it is run from its file, and put where AutoProcessor looks for it."""
    import transformers as tf
    from transformers.models import pixtral

    images = f"{pixtral.__name__}.image_processing_pixtral"
    if not has_torchvision() and images not in sys.modules:
        sys.modules[images] = import_module(f"{pixtral.__name__}.image_processing_pil_pixtral")
        spec = spec_from_file_location(
            f"{pixtral.__name__}.processing_pixtral", Path(pixtral.__path__[0]) / "processing_pixtral.py"
        )
        module = module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        pixtral.PixtralProcessor = tf.PixtralProcessor = module.PixtralProcessor
    return tf.PixtralProcessor


def _mistral3(**text):
    """Pixtral: 16-pixel merged patches, rows of which end with a token of their own."""
    import transformers as tf

    tokenizer = _mistral_tokenizer()
    image_processor = _image_processor("PixtralImageProcessor", size={"longest_edge": 48}, patch_size=16)
    processor = _pixtral_processor_class()(
        image_processor, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=MISTRAL_3
    )
    vision = _vision(model_type="pixtral", image_size=48, initializer_range=STD)
    vision.pop("projection_dim")
    config = tf.Mistral3Config(
        vision_config=vision,
        text_config=_text(tokenizer, **({"model_type": "mistral", "sliding_window": None, "head_dim": 16} | text)),
        image_token_index=processor.image_token_id,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return tf.Mistral3ForConditionalGeneration, config, processor


def _mistral3_ministral():
    return _mistral3(model_type="ministral3", **MINISTRAL)


def _mistral_sliding():
    import transformers as tf

    tokenizer = _mistral_tokenizer()
    return tf.MistralForCausalLM, tf.MistralConfig(**_text(tokenizer, sliding_window=16)), tokenizer


def _ministral():
    import transformers as tf

    tokenizer = _mistral_tokenizer()
    return tf.MinistralForCausalLM, tf.MinistralConfig(**_text(tokenizer, head_dim=16, **SLIDING)), tokenizer


def _ministral3():
    import transformers as tf

    tokenizer = _mistral_tokenizer()
    return tf.Ministral3ForCausalLM, tf.Ministral3Config(**_text(tokenizer, **MINISTRAL)), tokenizer


def _mixtral():
    import transformers as tf

    tokenizer = _mistral_tokenizer()
    text = _text(tokenizer, num_local_experts=4, num_experts_per_tok=2)
    return tf.MixtralForCausalLM, tf.MixtralConfig(**text), tokenizer


# --------------------------------------------------------------------------------------------------------------------
# GLM

GLM = _turns(
    ("<|user|>\n", ""),
    ("<|assistant|>\n<think></think>\n", ""),
    ("<|system|>\n", ""),
    "[gMASK]<sop>",
    "<|begin_of_image|><|image|><|end_of_image|>",
)
GLM_TOKENS = [
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|image|>",
    "<|end_of_image|>", "<|begin_of_video|>", "<|video|>", "<|end_of_video|>", "<think>", "</think>",
]  # fmt: skip


def _glm4v(prefix="Glm4v", processor="Glm4v", **text):
    import transformers as tf

    tokenizer = _tokenizer(GLM, GLM_TOKENS, eos="<|endoftext|>", pad="<|endoftext|>", side="left")
    size = {"shortest_edge": 4 * 16 * 16, "longest_edge": 2 * 16 * 16 * 16}  # counts two frames of one image
    pixels = "Glm46V" if processor == "Glm46V" else "Glm4v"
    image_processor = _image_processor(f"{pixels}ImageProcessor", patch_size=8, merge_size=2, size=size)
    video_processor = _video_processor(f"{pixels}VideoProcessor")
    made = getattr(tf, f"{processor}Processor")(image_processor, tokenizer, video_processor, chat_template=GLM)
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
    vision = QWEN_VISION | {"depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 64, "initializer_range": STD}
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image": "<|image|>",
            "video": "<|video|>",
            "image_start": "<|begin_of_image|>",
            "image_end": "<|end_of_image|>",
            "video_start": "<|begin_of_video|>",
            "video_end": "<|end_of_video|>",
        }.items()
    }
    config = getattr(tf, f"{prefix}Config")(
        vision_config=vision, text_config=_text(tokenizer, rope_parameters=rope, **text), **ids
    )
    return getattr(tf, f"{prefix}ForConditionalGeneration"), config, made


def _glm4v_moe():
    return _glm4v(
        "Glm4vMoe",
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        n_routed_experts=4,
        first_k_dense_replace=1,
        head_dim=16,
    )


def _glm46v():
    return _glm4v("Glm46V", "Glm46V", model_type="glm4v_text")


# --------------------------------------------------------------------------------------------------------------------
# Cohere

COHERE = _turns(
    ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "<BOS_TOKEN>",
    "<image>",
)
COHERE_TOKENS = [
    "<PAD>", "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
]  # fmt: skip


def _cohere_tokenizer(specials, template=COHERE, **named):
    return _tokenizer(
        template,
        [*COHERE_TOKENS, *specials],
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        add_bos=True,
        side="left",
        **named,
    )


def _cohere2():
    import transformers as tf

    tokenizer = _cohere_tokenizer([])
    return tf.Cohere2ForCausalLM, tf.Cohere2Config(**_text(tokenizer, **SLIDING)), tokenizer


def _aya_vision():
    """Tiles of 16 pixels and 4 tokens; the template's word for an image is none of the tokens of its patches."""
    import transformers as tf

    tiles = [f"TILE_{i}" for i in range(1, 5)]
    marks = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE_GLOBAL", "TILE", *tiles]
    tokenizer = _cohere_tokenizer(marks)
    size = {"height": 16, "width": 16}
    image_processor = _image_processor("GotOcr2ImageProcessor", size=size, crop_to_patches=True, max_patches=4)
    processor = tf.AyaVisionProcessor(
        image_processor, tokenizer, patch_size=4, img_size=16, downsample_factor=2, chat_template=COHERE
    )
    config = tf.AyaVisionConfig(
        vision_config=_siglip(image_size=16, patch_size=4),
        text_config=_text(tokenizer, model_type="cohere2", **SLIDING),
        image_token_index=processor.image_token_id,
    )
    return tf.AyaVisionForConditionalGeneration, config, processor


def _cohere2_vision():
    import transformers as tf

    image = "<|IMG_PATCH|>"
    named = {
        "image_token": image,
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    template = COHERE.replace("<image>", image)
    tokenizer = _cohere_tokenizer(list(named.values()), template, **named)
    size = {"height": 16, "width": 16}
    image_processor = tf.Cohere2VisionImageProcessor(
        size=size, crop_to_patches=True, max_patches=4, patch_size=2, downsample_factor=2
    )
    processor = tf.Cohere2VisionProcessor(image_processor, tokenizer, chat_template=template)
    config = tf.Cohere2VisionConfig(
        vision_config=_siglip(image_size=16, patch_size=4),
        text_config=_text(tokenizer, model_type="cohere2", **SLIDING),
        image_token_id=tokenizer.image_token_id,
        alignment_intermediate_size=64,
    )
    return tf.Cohere2VisionForConditionalGeneration, config, processor


# --------------------------------------------------------------------------------------------------------------------
# LFM 2

LFM = "{{- bos_token -}}" + _chatml("<image>")
CONV = {"layer_types": ["conv", "full_attention"], "tie_word_embeddings": True, "block_auto_adjust_ff_dim": False}


def _lfm2_tokenizer():
    named = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }
    tiles = [f"<|img_row_{i}_col_{j}|>" for i in range(1, 3) for j in range(1, 3)]
    specials = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values(), *tiles]
    return _tokenizer(
        LFM, specials, bos="<|startoftext|>", eos="<|im_end|>", pad="<|pad|>", add_bos=True, side="left", **named
    )


def _lfm2():
    import transformers as tf

    tokenizer = _lfm2_tokenizer()
    return tf.Lfm2ForCausalLM, tf.Lfm2Config(**_text(tokenizer, **CONV)), tokenizer


def _lfm2_vl():
    import transformers as tf

    tokenizer = _lfm2_tokenizer()
    image_processor = tf.Lfm2VlImageProcessor(
        encoder_patch_size=8,
        tile_size=32,
        min_tiles=2,
        max_tiles=4,
        min_image_tokens=4,
        max_image_tokens=16,
        max_num_patches=64,
        downsample_factor=2,
    )
    processor = tf.Lfm2VlProcessor(image_processor, tokenizer, chat_template=LFM)
    vision = _vision(model_type="siglip2_vision_model", num_patches=16, vision_use_head=False)
    for name in ("image_size", "projection_dim"):
        vision.pop(name)
    config = tf.Lfm2VlConfig(
        vision_config=vision,
        text_config=_text(tokenizer, model_type="lfm2", **CONV),
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=32,
        downsample_factor=2,
    )
    return tf.Lfm2VlForConditionalGeneration, config, processor


# --------------------------------------------------------------------------------------------------------------------
# Others with images


def _idefics2():
    import transformers as tf

    named = {
        "image_token": "<image>",
        "image_boundary_token": "<fake_token_around_image>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = _tokenizer(
        IDEFICS, ["<unk>", "<s>", "</s>", *named.values()], bos="<s>", eos="</s>", pad="<unk>", add_bos=True, **named
    )
    image_processor = _image_processor("Idefics2ImageProcessor", size={"shortest_edge": 16, "longest_edge": 32})
    processor = tf.Idefics2Processor(image_processor, tokenizer, image_seq_len=4, chat_template=IDEFICS)
    vision = _vision(initializer_range=STD)
    vision.pop("projection_dim")
    config = tf.Idefics2Config(
        vision_config=vision,
        perceiver_config={
            "hidden_size": HIDDEN,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
        text_config=_text(tokenizer, model_type="mistral", sliding_window=None),
        image_token_id=tokenizer.image_token_id,
    )
    return tf.Idefics2ForConditionalGeneration, config, processor


def _ovis2():
    """Images are probabilities over a table of visual words."""
    import transformers as tf

    template = _chatml("<image>\\n", default_system=ASSISTANT)
    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = _qwen_tokenizer(template, "right", ["<image>", "<IMG_ATOM>", *indicators])
    size = {"height": 16, "width": 16}
    image_processor = _image_processor("Ovis2ImageProcessor", size=size, crop_to_patches=True, max_patches=4)
    processor = tf.Ovis2Processor(image_processor, tokenizer, chat_template=template, image_seq_length=4)
    vision = _vision(image_size=16, patch_size=4, hidden_stride=2, vocab_size=64, initializer_range=STD)
    vision.pop("projection_dim")
    config = tf.Ovis2Config(
        vision_config=vision,
        text_config=_text(tokenizer, model_type="qwen2"),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(indicators),
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
    )
    return tf.Ovis2ForConditionalGeneration, config, processor


DEEPSEEK = _turns(
    ("User: ", "\n\n"), ("Assistant: ", "<｜end▁of▁sentence｜>"), ("", "\n\n"), image="<image_placeholder>"
)


def _deepseek_vl(prefix="DeepseekVL", **towers):
    import transformers as tf

    bos, eos, pad = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
    tokenizer = _tokenizer(
        DEEPSEEK, [bos, eos, pad, "<image_placeholder>"], bos=bos, eos=eos, pad=pad, add_bos=True, side="left",
        image_token="<image_placeholder>",
    )  # fmt: skip
    high = {"high_res_size": {"height": 64, "width": 64}} if towers else {}
    image_processor = _image_processor(f"{prefix}ImageProcessor", size={"height": 32, "width": 32}, min_size=8, **high)
    make = getattr(tf, f"{prefix}Processor")
    processor = make(image_processor, tokenizer, chat_template=DEEPSEEK, num_image_tokens=16)
    config = getattr(tf, f"{prefix}Config")(
        vision_config=_siglip(),
        text_config=_text(tokenizer, model_type="llama"),
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
        **towers,
    )
    return getattr(tf, f"{prefix}ForConditionalGeneration"), config, processor


def _deepseek_vl_hybrid():
    sam = {
        "model_type": "sam_vision_model",
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
        "mlp_dim": 48,
        "window_size": 2,
        "num_pos_feats": 8,
        "global_attn_indexes": [1],
        "initializer_range": STD,
    }
    return _deepseek_vl("DeepseekVLHybrid", high_res_vision_config=sam)


def _llava_phi3():
    return _llava(model_type="phi3")


def _llava_gemma2():
    return _llava(model_type="gemma2", head_dim=16, query_pre_attn_scalar=16, **SLIDING)


# --------------------------------------------------------------------------------------------------------------------
# Other language models

PHI = _turns(("<|user|>\n", "<|end|>\n"), ("<|assistant|>\n", "<|end|>\n"), ("<|system|>\n", "<|end|>\n"))
OLMO = _turns(("<|user|>\n", "\n"), ("<|assistant|>\n", "<|endoftext|>\n"), ("<|system|>\n", "\n"), "<|endoftext|>")


CHUNKED = {
    "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0],
    "attention_chunk_size": 16,
    "head_dim": 16,
    "intermediate_size_mlp": 48,
    "num_local_experts": 4,
    "moe_layers": [1],
    "floor_scale": 16,
}


def _llama4_text():
    import transformers as tf

    tokenizer = _llama3_tokenizer("<|pad|>", pad="<|pad|>")
    return tf.Llama4ForCausalLM, tf.Llama4TextConfig(**_text(tokenizer, **CHUNKED)), tokenizer


def _phi3():
    import transformers as tf

    tokens = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    tokenizer = _tokenizer(PHI, tokens, bos="<s>", eos="<|endoftext|>", pad="<|endoftext|>", side="left")
    return tf.Phi3ForCausalLM, tf.Phi3Config(**_text(tokenizer, sliding_window=16)), tokenizer


def _olmo(prefix, **text):
    import transformers as tf

    tokens = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = _tokenizer(OLMO, tokens, bos="<|endoftext|>", eos="<|endoftext|>", pad="<|pad|>")
    return getattr(tf, f"{prefix}ForCausalLM"), getattr(tf, f"{prefix}Config")(**_text(tokenizer, **text)), tokenizer


def _olmo2():
    return _olmo("Olmo2")


def _olmo3():
    return _olmo("Olmo3", **SLIDING)


def _smollm3():
    import transformers as tf

    tokenizer = _llama3_tokenizer("<|im_start|>", "<|im_end|>", "<think>", "</think>")
    tokenizer.chat_template = QWEN3
    return tf.SmolLM3ForCausalLM, tf.SmolLM3Config(**_text(tokenizer, no_rope_layers=[1, 0])), tokenizer


NEW_VISION_FAMILIES = {
    "qwen3_5": _qwen3_5,
    "gemma4": _gemma4,
    "gemma4_moe": _gemma4_moe,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "mistral3": _mistral3,
    "mistral3_ministral": _mistral3_ministral,
    "llava_gemma2": _llava_gemma2,
    "llava_phi3": _llava_phi3,
    "glm4v": _glm4v,
    "glm4v_moe": _glm4v_moe,
    "glm46v": _glm46v,
    "lfm2_vl": _lfm2_vl,
    "qwen3_5_moe": _qwen3_5_moe,
    "qwen2_5_vl_sliding": _qwen2_5_vl_sliding,
    "aya_vision": _aya_vision,
    "idefics2": _idefics2,
    "cohere2_vision": _cohere2_vision,
    "ovis2": _ovis2,
    "deepseek_vl": _deepseek_vl,
    "deepseek_vl_hybrid": _deepseek_vl_hybrid,
}
NEW_TEXT_FAMILIES = {
    "qwen3_5_text": _qwen3_5_text,
    "gemma4_text": _gemma4_text,
    "gemma3_text": _gemma3_text,
    "qwen3_5_moe_text": _qwen3_5_moe_text,
    "lfm2": _lfm2,
    "qwen3_moe": _qwen3_moe,
    "qwen3_next": _qwen3_next,
    "llama4_text": _llama4_text,
    "smollm3": _smollm3,
    "olmo2": _olmo2,
    "olmo3": _olmo3,
    "phi3": _phi3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "mistral_sliding": _mistral_sliding,
    "ministral": _ministral,
    "ministral3": _ministral3,
    "mixtral": _mixtral,
    "cohere2": _cohere2,
}
NEW_FAMILIES = NEW_VISION_FAMILIES | NEW_TEXT_FAMILIES
NEEDS_TORCHVISION = ("lfm2_vl", "cohere2_vision")


def make_family(name: str, folder, seed: int = 0) -> Path:
    """As `families.make_family`."""
    return families.make_family(name, folder, seed, NEW_FAMILIES)

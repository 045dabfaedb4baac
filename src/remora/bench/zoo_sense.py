"""Specimens that see or hear: vision, speech, and models of several modalities."""

from __future__ import annotations

from typing import Any

import torch

from remora.bench.zoo_models import (
    GROUPED,
    HEADED,
    PAD,
    SEQ2SEQ,
    SPEECH,
    TEXT,
    VISION,
    VOCABULARY,
    Inputs,
    Specimen,
    ids,
    images,
    pixels,
    spectrum,
    text,
    wave,
)

GREEDY: dict[str, Any] = {}
IMAGE = VOCABULARY - 1  # the token that stands where an image feature goes
N_PATCHES = 16  # of a picture of 32 by 32 in patches of 8 by 8


def scenes() -> Inputs:
    """Larger pictures without labels: matching boxes to them needs scipy, so the loss is of the outputs."""
    return {"pixel_values": pixels(64)}


def maps() -> Inputs:
    """Pictures with a class for each pixel."""
    return {"pixel_values": pixels(64), "labels": torch.arange(2 * 64 * 64).reshape(2, 64, 64) % 3}


def pictures() -> Inputs:
    return {"pixel_values": pixels()}


def captions() -> Inputs:
    """Pictures and sentences to match; no labels: the loss is contrastive."""
    return {**text(), "pixel_values": pixels(), "return_loss": True}


def about_image(tokens: int = N_PATCHES) -> Inputs:
    """A picture, `tokens` long, in the middle of a sentence."""
    words = ids(2, 6)
    batch = torch.cat([words[:, :3], torch.full((2, tokens), IMAGE), words[:, 3:]], dim=1)
    return {
        "input_ids": batch,
        "attention_mask": torch.ones_like(batch),
        "pixel_values": pixels(),
        "labels": batch.masked_fill(batch == IMAGE, -100),
    }


def about_marked_image() -> Inputs:
    """As PaliGemma's processor marks it: the picture first, prefix and suffix by token type."""
    inputs = about_image()
    order = torch.argsort((inputs["input_ids"] != IMAGE).long(), dim=1, stable=True)
    batch = inputs["input_ids"].gather(1, order)
    types = torch.zeros_like(batch)
    types[:, -3:] = 1
    return {
        **inputs,
        "input_ids": batch,
        "token_type_ids": types,
        "labels": batch.masked_fill(types == 0, -100),
    }


def about_patches() -> Inputs:
    """As Qwen2-VL's processor cuts it: patches of 8 by 8, two frames each, merged two by two."""
    inputs = about_image(4)
    flat = pixels().repeat(1, 2, 1, 1).reshape(2 * N_PATCHES, -1)
    types = (inputs["input_ids"] == IMAGE).int()
    grid = torch.tensor([[1, 4, 4], [1, 4, 4]])
    return {**inputs, "pixel_values": flat, "image_grid_thw": grid, "mm_token_type_ids": types}


def captioned() -> Inputs:
    return {**text(), "pixel_values": pixels(), "labels": ids()}


def questions() -> Inputs:
    """Sentences about pictures, with a class as the answer."""
    return {**text(), "pixel_values": pixels(), "labels": torch.eye(2)}


def transcribed() -> Inputs:
    inputs = wave()
    return {"input_values": inputs["input_values"], "labels": inputs["labels"]}


WORDS = {**TEXT, "image_token_index": IMAGE, "image_token_id": IMAGE}
SIGHT = {**VISION, "initializer_range": 0.2}
TOWER = {"projection_dim": 16}


def _sees(name: str, model: str, config: dict[str, Any], inputs: Any = images) -> Specimen:
    return Specimen(name, model, config, inputs)


SIGHTED = (
    _sees("vit", "ViTForImageClassification", SIGHT),
    _sees("deit", "DeiTForImageClassification", SIGHT),
    _sees("beit", "BeitForImageClassification", {**SIGHT, "use_relative_position_bias": True}),
    _sees("dinov2", "Dinov2ForImageClassification", SIGHT),
    _sees(
        "swin",
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    _sees(
        "swinv2",
        "Swinv2ForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    _sees(
        "convnext",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    ),
    _sees(
        "convnextv2",
        "ConvNextV2ForImageClassification",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    ),
    _sees(
        "resnet",
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]},
    ),
    _sees("mobilenet_v2", "MobileNetV2ForImageClassification", {"depth_multiplier": 0.25, "image_size": 32}),
    _sees(
        "efficientnet",
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.2, "depth_coefficient": 0.2, "image_size": 32, "hidden_dim": 256},
    ),
    _sees(
        "segformer",
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
            "num_labels": 3,
        },
        maps,
    ),
    _sees(
        "yolos",
        "YolosForObjectDetection",
        {**SIGHT, "image_size": [64, 64], "num_detection_tokens": 6, "num_labels": 3},
        scenes,
    ),
    _sees(
        "detr",
        "DetrForObjectDetection",
        {
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "num_queries": 6,
            "num_labels": 3,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": {
                "model_type": "resnet",
                "embedding_size": 8,
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "out_features": ["stage2"],
            },
        },
        scenes,
    ),
    _sees(
        "vit_mae",
        "ViTMAEForPreTraining",
        {
            **SIGHT,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
        },
        pictures,
    ),
    _sees(
        "dpt",
        "DPTForSemanticSegmentation",
        {
            **SIGHT,
            "image_size": 64,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "num_labels": 3,
            "is_hybrid": False,
        },
        maps,
    ),
)
HEARING = (
    Specimen("wav2vec2", "Wav2Vec2ForCTC", SPEECH, transcribed),
    Specimen("hubert", "HubertForCTC", SPEECH, transcribed),
    Specimen("wavlm", "WavLMForCTC", {**SPEECH, "num_buckets": 8}, transcribed),
    Specimen(
        "whisper",
        "WhisperForConditionalGeneration",
        {
            **SEQ2SEQ,
            "num_mel_bins": 16,
            "max_source_positions": 30,
            "max_target_positions": 64,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        spectrum,
        GREEDY,
    ),
    Specimen(
        "speech_to_text",
        "Speech2TextForConditionalGeneration",
        {
            **SEQ2SEQ,
            "input_feat_per_channel": 60,
            "max_source_positions": 64,
            "max_target_positions": 64,
            "conv_channels": 16,
        },
        spectrum,
        GREEDY,
    ),
    Specimen(
        "audio_spectrogram_transformer",
        "ASTForAudioClassification",
        {**SIGHT, "max_length": 32, "num_mel_bins": 16},
        lambda: {
            "input_values": torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(1)),
            "labels": torch.tensor([0, 1]),
        },
    ),
)
SEVERAL = (
    Specimen("clip", "CLIPModel", {"text_config": TEXT, "vision_config": SIGHT, **TOWER}, captions),
    Specimen(
        "siglip",
        "SiglipModel",
        {"text_config": {**TEXT, "projection_size": 32}, "vision_config": SIGHT},
        captions,
    ),
    Specimen(
        "chinese_clip", "ChineseCLIPModel", {"text_config": TEXT, "vision_config": SIGHT, **TOWER}, captions
    ),
    Specimen(
        "blip",
        "BlipForConditionalGeneration",
        {
            "text_config": {**TEXT, "encoder_hidden_size": 32},
            "vision_config": SIGHT,
            **TOWER,
            "image_text_hidden_size": 16,
        },
        captioned,
        GREEDY,
    ),
    Specimen(
        "blip_2",
        "Blip2ForConditionalGeneration",
        {
            "vision_config": SIGHT,
            "qformer_config": {**TEXT, "encoder_hidden_size": 32},
            "text_config": {**TEXT, "model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32},
            "num_query_tokens": N_PATCHES,
            "image_token_index": IMAGE,
        },
        about_image,
        GREEDY,
    ),
    Specimen(
        "llava",
        "LlavaForConditionalGeneration",
        {
            "text_config": {**HEADED, "model_type": "llama"},
            "vision_config": {**SIGHT, "model_type": "clip_vision_model"},
            "image_token_index": IMAGE,
            "vision_feature_layer": -1,
        },
        about_image,
        GREEDY,
    ),
    Specimen(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        {
            "text_config": {**HEADED, "model_type": "gemma"},
            "vision_config": {**SIGHT, "model_type": "siglip_vision_model"},
            "projection_dim": 32,
            "image_token_index": IMAGE,
            "image_token_id": IMAGE,
        },
        about_marked_image,
        GREEDY,
    ),
    Specimen(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": {
                **GROUPED,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            },
            "vision_config": {
                "depth": 2,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 8,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
            "image_token_id": IMAGE,
            "video_token_id": IMAGE - 1,
            "vision_start_token_id": IMAGE - 2,
            "vision_end_token_id": IMAGE - 3,
        },
        about_patches,
        GREEDY,
    ),
    Specimen("vilt", "ViltForQuestionAnswering", {**TEXT, **SIGHT, "num_labels": 2}, questions),
    Specimen(
        "git",
        "GitForCausalLM",
        {**TEXT, "vision_config": SIGHT},
        lambda: {"input_ids": ids(), "pixel_values": pixels()},
        GREEDY,
    ),
    Specimen(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        {
            "text_config": {**HEADED, "model_type": "llama"},
            "vision_config": SIGHT,
            "image_token_id": IMAGE,
            "scale_factor": 2,
            "pad_token_id": PAD,
        },
        lambda: {**about_image(4), "pixel_values": pixels()[:, None]},
        GREEDY,
    ),
)
SENSES = (*SIGHTED, *HEARING, *SEVERAL)

"""Specimens that read and write text: decoders, mixtures of experts, state spaces, encoders, encoder-decoders."""

from __future__ import annotations

from typing import Any

from remora.bench.zoo_models import (
    GROUPED,
    HEADED,
    SEQ2SEQ,
    T5,
    TEXT,
    Specimen,
    labelled_text,
    pairs,
    unpadded_text,
)

GREEDY: dict[str, Any] = {}
XLNET = {name: value for name, value in TEXT.items() if name != "max_position_embeddings"} | {
    "d_inner": 64,
    "d_head": 8,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}


def _writes(name: str, model: str, config: dict[str, Any], inputs: Any = labelled_text) -> Specimen:
    return Specimen(name, model, config, inputs, GREEDY)


def _reads(name: str, model: str, config: dict[str, Any], inputs: Any = labelled_text) -> Specimen:
    return Specimen(name, model, config, inputs)


DECODERS = (
    _writes("gpt2", "GPT2LMHeadModel", TEXT),
    _writes("gpt_neo", "GPTNeoForCausalLM", {**TEXT, "attention_types": [[["global", "local"], 1]]}),
    _writes("gpt_neox", "GPTNeoXForCausalLM", TEXT),
    _writes("gptj", "GPTJForCausalLM", {**TEXT, "rotary_dim": 4}),
    _writes("gpt_bigcode", "GPTBigCodeForCausalLM", TEXT),
    _writes("codegen", "CodeGenForCausalLM", {**TEXT, "rotary_dim": 4}),
    _writes("opt", "OPTForCausalLM", {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2}),
    _writes("bloom", "BloomForCausalLM", TEXT),
    _writes("mpt", "MptForCausalLM", {**TEXT, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    _writes("falcon", "FalconForCausalLM", TEXT),
    _writes("falcon-alibi", "FalconForCausalLM", {**TEXT, "alibi": True, "new_decoder_architecture": False}),
    _writes("llama", "LlamaForCausalLM", HEADED),
    _writes("mistral", "MistralForCausalLM", {**HEADED, "sliding_window": 6}),
    _writes("qwen2", "Qwen2ForCausalLM", GROUPED),
    _writes("qwen3", "Qwen3ForCausalLM", HEADED),
    _writes("gemma", "GemmaForCausalLM", HEADED),
    _writes("gemma2", "Gemma2ForCausalLM", {**HEADED, "sliding_window": 6}),
    _writes("gemma3", "Gemma3ForCausalLM", {**HEADED, "sliding_window": 6}),
    _writes("phi", "PhiForCausalLM", GROUPED),
    _writes("phi3", "Phi3ForCausalLM", GROUPED),
    _writes("stablelm", "StableLmForCausalLM", GROUPED),
    _writes("starcoder2", "Starcoder2ForCausalLM", {**GROUPED, "sliding_window": 6}),
    _writes("olmo", "OlmoForCausalLM", GROUPED),
    _writes("olmo2", "Olmo2ForCausalLM", GROUPED),
    _writes("cohere", "CohereForCausalLM", GROUPED),
    _writes("cohere2", "Cohere2ForCausalLM", {**HEADED, "sliding_window": 6}),
    _writes("granite", "GraniteForCausalLM", GROUPED),
    _writes("glm", "GlmForCausalLM", HEADED),
    _writes("smollm3", "SmolLM3ForCausalLM", GROUPED),
    _writes("nemotron", "NemotronForCausalLM", GROUPED),
    _writes("persimmon", "PersimmonForCausalLM", TEXT),
    _writes("biogpt", "BioGptForCausalLM", TEXT),
)
MIXTURES = (
    _writes("mixtral", "MixtralForCausalLM", {**HEADED, **EXPERTS}),
    _writes(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**GROUPED, **EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    ),
    _writes("qwen3_moe", "Qwen3MoeForCausalLM", {**HEADED, **EXPERTS, "moe_intermediate_size": 32}),
    _writes("olmoe", "OlmoeForCausalLM", {**GROUPED, **EXPERTS}),
    _writes("gpt_oss", "GptOssForCausalLM", {**HEADED, **EXPERTS, "sliding_window": 6}),
    _writes(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        {
            **TEXT,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 32,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    Specimen(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        pairs,
        GREEDY,
    ),
)
STATE_SPACES = (
    _writes("mamba", "MambaForCausalLM", {**TEXT, "state_size": 8}, unpadded_text),
    _writes(
        "mamba2",
        "Mamba2ForCausalLM",
        {**TEXT, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
        unpadded_text,
    ),
    _writes("rwkv", "RwkvForCausalLM", {**TEXT, "attention_hidden_size": 32}, unpadded_text),
    _writes(
        "jamba",
        "JambaForCausalLM",
        {
            **GROUPED,
            **EXPERTS,
            "num_hidden_layers": 4,
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    _writes("falcon_mamba", "FalconMambaForCausalLM", {**TEXT, "state_size": 8}, unpadded_text),
    _writes(
        "bamba",
        "BambaForCausalLM",
        {
            **GROUPED,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 8,
            "mamba_chunk_size": 4,
        },
    ),
    _writes(
        "recurrent_gemma",
        "RecurrentGemmaForCausalLM",
        {**HEADED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
        unpadded_text,
    ),
)
ENCODERS = (
    _reads("bert", "BertForMaskedLM", TEXT),
    _reads("roberta", "RobertaForMaskedLM", {**TEXT, "max_position_embeddings": 80}),
    _reads("distilbert", "DistilBertForMaskedLM", {**TEXT, "hidden_dim": 64}),
    _reads("electra", "ElectraForMaskedLM", {**TEXT, "embedding_size": 16}),
    _reads(
        "deberta_v2",
        "DebertaV2ForMaskedLM",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    ),
    _reads(
        "deberta", "DebertaForMaskedLM", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    ),
    _reads("albert", "AlbertForMaskedLM", {**TEXT, "embedding_size": 16}),
    _reads("xlm_roberta", "XLMRobertaForMaskedLM", {**TEXT, "max_position_embeddings": 80}),
    _reads("modernbert", "ModernBertForMaskedLM", {**TEXT, "local_attention": 4}),
    _reads("mpnet", "MPNetForMaskedLM", {**TEXT, "max_position_embeddings": 80}),
    _reads("camembert", "CamembertForMaskedLM", {**TEXT, "max_position_embeddings": 80}),
    _reads("xlnet", "XLNetLMHeadModel", XLNET),
    _reads("big_bird", "BigBirdForMaskedLM", {**TEXT, "attention_type": "original_full"}),
    _reads(
        "longformer", "LongformerForMaskedLM", {**TEXT, "max_position_embeddings": 80, "attention_window": 4}
    ),
    _reads("fnet", "FNetForMaskedLM", TEXT),
)
SEQUENCES = (
    Specimen("t5", "T5ForConditionalGeneration", T5, pairs, GREEDY),
    Specimen("mt5", "MT5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}, pairs, GREEDY),
    Specimen("longt5", "LongT5ForConditionalGeneration", {**T5, "local_radius": 4}, pairs, GREEDY),
    Specimen("bart", "BartForConditionalGeneration", SEQ2SEQ, pairs, GREEDY),
    Specimen("pegasus", "PegasusForConditionalGeneration", SEQ2SEQ, pairs, GREEDY),
    Specimen("mbart", "MBartForConditionalGeneration", SEQ2SEQ, pairs, GREEDY),
    Specimen("marian", "MarianMTModel", SEQ2SEQ, pairs, GREEDY),
    Specimen("m2m_100", "M2M100ForConditionalGeneration", SEQ2SEQ, pairs, GREEDY),
    Specimen("blenderbot", "BlenderbotForConditionalGeneration", SEQ2SEQ, pairs, GREEDY),
    Specimen(
        "led",
        "LEDForConditionalGeneration",
        {
            **SEQ2SEQ,
            "attention_window": 4,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        },
        pairs,
        GREEDY,
    ),
)
TEXTS = (*DECODERS, *MIXTURES, *STATE_SPACES, *ENCODERS, *SEQUENCES)

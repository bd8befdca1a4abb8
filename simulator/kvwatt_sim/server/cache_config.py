"""Labels of `vllm:cache_config_info`: every field of vLLM's CacheConfig, which differ between versions."""

from __future__ import annotations

from kvwatt.state import EngineShape
from kvwatt_sim.server.families import Layout

# Common to 0.27, 0.31 and 0.32, with the value that an engine without special options shows.
_COMMON = {
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "enable_prefix_caching": "True",
    "gpu_memory_utilization": "0.92",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_memory_bytes": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "num_cpu_blocks": "None",
    "num_gpu_blocks_override": "None",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "use_replayssm": "False",
    "user_specified_block_size": "True",
}
_SINCE_0_31 = {
    "enable_mamba_shared_prefix_checkpoint": "False",
    "kv_cache_layout": "None",
    "mamba_ssm_cache_dtype": "float32",
    "prefix_cache_retention_interval": "0",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
}
_BY_LAYOUT: dict[Layout, dict[str, str]] = {
    Layout.V0_27: {
        "calculate_kv_scales": "False",
        "mamba_ssm_cache_dtype": "auto",
        "user_specified_mamba_block_size": "False",
    },
    Layout.V0_31: _SINCE_0_31 | {"user_specified_mamba_block_size": "False"},
    Layout.V0_32: _SINCE_0_31 | {"cache_hit_alignment_tokens": "None", "hash_block_size": "None"},
}


def cache_config_labels(layout: Layout, shape: EngineShape, max_model_len: int) -> dict[str, str]:
    """Label values of the info gauge for one engine, without `engine`."""
    size_tokens = shape.num_blocks * shape.block_size
    sizes = {
        "block_size": str(shape.block_size),
        "num_gpu_blocks": str(shape.num_blocks),
        "kv_cache_size_tokens": str(size_tokens),
        "kv_cache_max_concurrency": str(size_tokens / max_model_len),
    }
    if layout is not Layout.V0_27:
        sizes["effective_attention_block_size"] = str(shape.block_size)
    return _COMMON | _BY_LAYOUT[layout] | sizes

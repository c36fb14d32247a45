"""Every key that a MindRLHF GRPO configuration may hold, so that one is never mistaken for a typing error.

Source: `GRPOConfig` and the example YAML files of mindspore-ai/mindrlhf, branches master and dev with their
history since the keys were grouped into sections (2025-05 to 2025-08).
"""

from __future__ import annotations

_PARALLEL = """
    context_parallel data_parallel expert_parallel micro_batch_num model_parallel pipeline_stage
    use_seq_parallel vocab_emb_dp
"""
_RECOMPUTE = """
    mp_comm_recompute parallel_optimizer_comm_recompute recompute recompute_slice_activation
    select_comm_recompute select_recompute
"""
_SECTIONS = {
    "rl_config": """
        align_type batch_size beta calculate_entropy chunk_size cliprange cliprange_value compile_cache_path
        dataset_file deterministic enable_compile_cache enable_full_monitor enable_oldpolicy
        enable_reshard_optimizer epochs epsilon_high epsilon_low gamma gen_experience_kwargs horizon
        init_kl_coef kl_coef lam load_ckpt_format micro_batch_interleaved model_name num_generations
        num_iterations num_rollouts pack_num packing packing_sample_length parallel_mode performance_stats
        pretrain_coef ref_mean ref_std reshard_mem_opt_level reshard_mode resume_training save_checkpoint_dir
        save_checkpoint_steps save_ckpt_format save_ckpt_interval save_data_file save_max_ckpt_num
        save_prompt_completions_data save_prompt_completions_dir save_prompt_completions_interval
        save_strategy_dir scale_reward seed seq_length sink_size target tensorboard tensorboard_dir
        tensorboard_queue_size tokenizer_dir tokenizer_type use_parallel vf_coef
    """,
    "actor_config": """
        enable_alltoall enable_parallel_optimizer load loss_scale_value model_config offset save
        use_eod_attn_mask_compression
    """,
    "actor_config.lr_schedule": "decay_steps lr lr_decay_style min_lr warmup_step",
    "actor_config.optimizer": "adam_beta1 adam_beta2 eps opt_offload type weight_decay",
    "actor_config.parallel_config": _PARALLEL,
    "actor_config.recompute_config": _RECOMPUTE,
    "ref_config": """
        load model_config offset ref_model_batch_size ref_model_sync_steps sync_ref_model
        use_eod_attn_mask_compression
    """,
    "ref_config.parallel_config": _PARALLEL,
    "ref_config.recompute_config": _RECOMPUTE,
    "reward_config": "verifier_function verifier_weight",
    "generate_config": """
        block_size gpu_memory_utilization hf_config_path infer_model_batch_size load max_model_len
        max_num_batched_tokens max_num_seqs max_prompt_length model_config num_scheduler_steps offset
        trust_remote_code use_eod_attn_mask_compression use_vllm
    """,
    "generate_config.parallel_config": _PARALLEL,
    "generate_config.sampling_config": """
        bos_token_id detokenize eos_token_id logprobs max_tokens min_p min_tokens pad_token_id
        repetition_penalty temperature top_k top_p
    """,
    "monitor_config": """
        host_max_memory_threshold host_memory_protection host_monitor_interval host_monitor_steps
    """,
    "profiler_config": """
        mstx profile profile_analysis profile_level profile_ranks profile_save_path profile_step_end
        profile_step_start profile_with_cpu profile_with_memory profile_with_npu profile_with_stack stage
    """,
    "context": """
        device_id device_target max_call_depth max_device_memory memory_optimize_level mode save_graphs
        save_graphs_path
    """,
    "context.ascend_config": "precision_mode",
    "context.jit_config": "jit_level",
}

SECTIONS = frozenset(_SECTIONS)
KEYS = frozenset(f"{section}.{name}" for section, names in _SECTIONS.items() for name in names.split())

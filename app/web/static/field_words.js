// The fields of a job in words; their names in JSON stand behind them.

export const WORDS = {
  num_remove: "Blocks to remove", sparsity: "Fraction of blocks to remove", max_perplexity_ratio: "Perplexity limit",
  target_speedup: "Target speed-up", target_bytes: "Target size", dataset: "Text", path: "File", weight: "Weight", sampling: "Sampling",
  num_samples: "Windows", seqlen: "Tokens per window", seed: "Seed", metric: "Metric", search: "Search",
  protect_first: "Protected first blocks", protect_last: "Protected last blocks",
  repair: "Repair", num_tokens: "Training tokens", max_minutes: "Maximum minutes",
  rank: "Adapter rank", alpha: "Adapter scale (alpha)", learning_rate: "Learning rate", warmup: "Warm-up",
  batch_tokens: "Tokens per step", clip_norm: "Gradient clipping", steps_per_check: "Steps between checks",
  patience: "Patience", hidden_weight: "Hidden-state weight", checkpoint_activations: "Recompute activations",
  control: "Train a control", depths: "Healed depths", margin: "Interval margin", max_seconds: "Maximum seconds",
  evaluate: "Measure held-out text", quantize: "Also measure quantized", tasks: "Tasks", task_questions: "Questions per task",
  resident: "Weights in memory", dtype: "dtype of the run", save_dtype: "Published dtype", priority: "Priority",
  gate: "Quality gate", heal: "Heal the pruned model", target: "Another target", calibration: "Calibration text",
};

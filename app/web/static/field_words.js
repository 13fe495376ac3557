// The fields of a job in words; their names in JSON stand behind them.

export const WORDS = {
  num_remove: "Blocks to remove", sparsity: "Share of blocks to remove", max_perplexity_ratio: "Limit on the perplexity",
  target_speedup: "Speed-up to reach", target_bytes: "Size to reach", dataset: "Text", path: "File", weight: "Weight", sampling: "Sampling",
  num_samples: "Windows", seqlen: "Tokens per window", seed: "Seed", metric: "Blocks are ranked by", search: "Search",
  protect_first: "First blocks kept", protect_last: "Last blocks kept",
  repair: "Repair", num_tokens: "Tokens to train on", max_minutes: "Minutes at most",
  rank: "Rank of the adapters", alpha: "Scale of the adapters", learning_rate: "Learning rate", warmup: "Warm-up",
  batch_tokens: "Tokens per step", clip_norm: "Limit on gradients", steps_per_check: "Steps between checks",
  patience: "Patience", hidden_weight: "Weight of the hidden state", checkpoint_activations: "Compute activations again",
  control: "Train a control", depths: "Depths that are healed", margin: "Margin of the intervals", max_seconds: "Seconds at most",
  evaluate: "Measure held-out text", quantize: "Also measure quantized", zero_shot: "Tasks of lm-eval",
  resident: "Weights in memory", dtype: "Type of the run", save_dtype: "Type that is published", priority: "Priority",
  gate: "Quality gate", heal: "Heal the pruned model", target: "Another target", calibration: "Calibration text",
};

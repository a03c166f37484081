"""The reward model and the policy: chat templates, batches, loading, saving, scoring, sampling."""

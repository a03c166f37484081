"""n candidates of a prompt: where they come from, which is kept, what n gives."""

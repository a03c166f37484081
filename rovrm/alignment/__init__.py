"""What is done to a policy: trained on preferences (`rovrm.dpo`)."""

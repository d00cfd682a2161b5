"""Loading models, chat templates, generation."""

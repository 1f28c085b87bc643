"""Taggers: who writes the prompts of a policy with a text encoder from what is seen in each image."""

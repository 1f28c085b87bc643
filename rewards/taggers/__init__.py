"""Taggers: they write a prompt from the content of each image, for policies with a text encoder."""

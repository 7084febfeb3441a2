"""The names of scGenePT's model types, and how its models start from scGPT."""

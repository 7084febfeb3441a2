"""Parts of networks: torch only, no file or table access."""

"""Where cells come from: rows of AnnData and MuData, in memory or on disk."""

"""What runs a model over a table: open it, walk through its rows, keep a record of how the result was made."""

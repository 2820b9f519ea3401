"""What training reads: token files, conversations, rows of other formats."""

"""Pages, tables and pictures of what runs have found."""

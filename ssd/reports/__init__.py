"""Reports as HTML files that need no other file: the page that all have in common, and the report of a data set."""

"""What an example must be, what a file holds, what a data set is, what MLPerf published."""

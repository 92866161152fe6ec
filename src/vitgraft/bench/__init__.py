"""The benchmark: suites, protocols and published tables as data, and the runs that are held against them."""

"""The figures of the methods' pages, drawn from what each method declares."""

"""What a person looks at: pages, charts, tables and drawings."""

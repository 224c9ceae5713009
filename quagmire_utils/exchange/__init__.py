"""What other tools write, and what they read: import of their sample logs, export of ours.

| `formats` | the formats that are read: a table with a few lines for each |
| `importing` | from a log to a graded sample store |
| `exporting` | counts and samples as parquet with a data card, a table for `rank`, logs for inspect's viewer; the hub |
"""

"""The operator's pages: what waits, runs and has ended, who works, and what it costs.

They are rendered here, by Jinja2 with automatic escaping, and kept up to date by one small script.
Without the script they work all the same.
"""
